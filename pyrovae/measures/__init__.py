"""What is measured of one trained run: an estimator of the same name, applied to a pair and its data."""
