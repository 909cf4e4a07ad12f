"""Planning: which blocks stay. Pure Python."""
