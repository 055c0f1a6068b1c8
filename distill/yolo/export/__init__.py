"""Exports to other runtimes, and the proof that they are the same network."""
