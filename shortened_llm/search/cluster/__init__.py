"""The search on a Ray cluster: who runs where, and what is told of it."""
