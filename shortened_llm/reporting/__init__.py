"""From an `Experiment` to files a person reads: one HTML page, Markdown, CSV, JSON and a Pareto plot.

Everything shown is derived from the records. Read `write.py` first.
"""
