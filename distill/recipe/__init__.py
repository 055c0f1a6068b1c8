"""Recipe files: what they may hold, and how they are read and written."""
