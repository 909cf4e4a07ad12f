"""Evaluation: what a model scores. Only pool.py imports ray."""
