"""Shorten large language models: remove whole Transformer blocks, then recover quality by retraining.

Method: Shortened LLaMA (arXiv 2402.02834). Data moves forward through frozen records
(`records.py`); the function to read first is `search/trial.py`.
"""
