"""Interpretation of a study's results: findings, figures, reports and diagnosis."""
