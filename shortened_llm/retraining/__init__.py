"""Retraining: a pruned model recovers. Only worker.py and launch.py import ray.train."""
