"""Tables, plots and pages, read from the store: a view over manifests and event files, never a stage."""
