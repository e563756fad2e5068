"""Likelihoods p(x|z), one file each: called with the decoder's features, a likelihood returns a distribution."""

from pyrovae.models.likelihoods.bernoulli import Bernoulli
from pyrovae.models.likelihoods.gaussian import Gaussian

__all__ = ["Bernoulli", "Gaussian"]
