"""A student outside the project: its card, prediction, export to other runtimes, latency."""
