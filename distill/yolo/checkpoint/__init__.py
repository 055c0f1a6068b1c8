"""YOLO checkpoints: opened safely, built, saved."""
