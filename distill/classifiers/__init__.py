"""Classifiers of timm and torchvision: opened, cut, trained by timm's parts, measured by top-1, saved with their widths."""
