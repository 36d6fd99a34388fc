"""What the compiler makes of a spec: a DAG of stages with content keys, known before anything runs."""
