"""What a Dask task does: one module per stage, one part per task."""
