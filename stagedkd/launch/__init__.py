"""Stages in other processes: the ranks of one training, or workers that make one stage each."""
