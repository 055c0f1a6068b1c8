"""A generated data set, for who has none at hand."""
