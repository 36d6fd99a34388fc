"""Plans: the compiler turns a spec into a DAG of stages whose content keys are known before anything runs."""
