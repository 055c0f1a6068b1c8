"""What a run leaves, typed: its networks, the records of its stages, its results."""
