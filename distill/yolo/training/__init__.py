"""Training a YOLO inside ultralytics' trainer."""
