"""One loop for every network that is trained: teacher, assistants, student."""
