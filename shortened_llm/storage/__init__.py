"""Where results lie: the only importer of fsspec and pyarrow.fs."""
