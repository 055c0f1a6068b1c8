"""Teacher, student and losses as one task, and its schedule; knows no trainer and no model family."""
