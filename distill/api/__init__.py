"""What the command line and Python have in common: runs, single steps, and their arguments."""
