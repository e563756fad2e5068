"""Pyro programs: the pair of a model and a guide, trace queries, effect handlers and distributions."""
