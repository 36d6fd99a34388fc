"""Shows what the store keeps: a view over manifests and event files, never a stage."""
