"""Models: the only package that knows architectures."""
