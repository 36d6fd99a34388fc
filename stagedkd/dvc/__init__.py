"""The DVC pipeline: write dvc.yaml from plans, guard it, and commit to DVC what a run has published."""
