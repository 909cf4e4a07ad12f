"""Scoring: how much each block matters, by one criterion per file."""
