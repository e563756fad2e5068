"""Pure functions of tensors; this is where estimators of information and likelihood belong."""
