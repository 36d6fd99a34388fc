"""A student for other runtimes: written, loaded again there, and compared on clips."""
