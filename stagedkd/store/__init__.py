"""Keeps what stages make: atomic artifacts under content keys, one lock per key."""
