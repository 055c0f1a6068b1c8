"""A traced network that can be run and looked into."""
