"""Whole experiments: run, lock, check, reproduce and survey a spec."""
