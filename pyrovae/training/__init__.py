"""Training a cohort of runs in lockstep."""
