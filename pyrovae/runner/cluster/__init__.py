"""Studies beyond one machine: cohorts are placed, handed out to the workers of a Dask cluster, and gathered again."""
