"""What a network finds: boxes, or masks, keypoints or angles with them. One file for each, and one table that lists them."""
