"""Retraining, side by side with what one would use instead. Run it as `python -m tests.benchmarks.retraining`."""
