"""The version of the code, which goes into run.json."""

__version__ = "0.1.0"
