"""One training loop for all networks: teacher, assistants, student."""
