"""Everything that knows MLflow: runs, artifacts, lineage, the registry."""
