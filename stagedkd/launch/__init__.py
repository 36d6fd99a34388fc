"""A stage in other processes: ranks of one training, workers with a stage each."""
