"""Which channels go, the cut, and its proof."""
