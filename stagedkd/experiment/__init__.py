"""Whole experiments: what the commands do with a spec."""
