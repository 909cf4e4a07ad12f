"""What rungs save, and what they cost."""
