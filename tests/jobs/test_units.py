"""What is refused of units that are removed, before anything is spent."""
