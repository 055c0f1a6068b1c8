"""The command line: words in, one call out."""
