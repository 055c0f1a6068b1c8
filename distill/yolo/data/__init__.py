"""Data sets of images and YOLO labels."""
