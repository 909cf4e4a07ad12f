"""What a search leaves in the storage, and who removes it."""
