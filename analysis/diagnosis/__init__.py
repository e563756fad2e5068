"""A trained guide compared with exact posteriors."""
