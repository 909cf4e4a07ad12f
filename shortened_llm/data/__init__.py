"""Text: sources, splits by document, calibration sequences, packed shards and the order of training."""
