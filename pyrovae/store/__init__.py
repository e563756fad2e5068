"""Results, records and checkpoints of a study on disk."""
