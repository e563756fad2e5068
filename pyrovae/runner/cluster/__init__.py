"""Studies on several machines: cohorts are assigned to the workers of a Dask cluster, and their results collected."""
