"""Where exported networks run: one file for each runtime, and one table that lists them."""
