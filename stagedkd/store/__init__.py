"""The store keeps the artifacts of stages under content keys. Publication is atomic, and each key has one lease."""
