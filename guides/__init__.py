"""Guides q(z|x), one file each: ``posterior(x)`` returns a distribution, the guide itself is the Pyro program."""

from pyrovae.guides.full_rank import FullRank
from pyrovae.guides.mean_field import MeanField

__all__ = ["FullRank", "MeanField"]
