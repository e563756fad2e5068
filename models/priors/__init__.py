"""Priors p(z), one file each: called without arguments, a prior returns a distribution."""

from pyrovae.models.priors.standard_normal import StandardNormal

__all__ = ["StandardNormal"]
