"""DVC's pipeline: dvc.yaml made of plans, guarded, and DVC told what a run has published."""
