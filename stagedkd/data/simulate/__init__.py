"""Simulated families of clips."""
