"""Pyro programs: a model and a guide as one pair, its trace queries, handlers and distributions."""
