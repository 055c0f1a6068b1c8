"""Mending a pruned network without labels: in closed form, then block by block."""
