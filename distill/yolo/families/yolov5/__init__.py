"""The family of the original YOLOv5 (v5.0 to v7.0)."""
