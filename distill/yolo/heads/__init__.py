"""The detection heads, and what differs between them."""
