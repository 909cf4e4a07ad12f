"""What only a GPU shows: `make test-gpu`. Without CUDA all of it is skipped; no Ray, no network, no model hub."""
