"""What it costs to lose a channel."""
