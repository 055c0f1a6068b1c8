"""The detector families: one file or folder for each, and one table that lists them."""
