"""What a kind of network declares: how it is opened, cut, taught, trained, measured and exported."""
