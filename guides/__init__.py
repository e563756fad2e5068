"""Guides q(z|x), one file each: a guide is a Pyro program, and ``posterior(x)`` its distribution."""

from pyrovae.guides.flow import Flow
from pyrovae.guides.full_rank import FullRank
from pyrovae.guides.guide import Guide
from pyrovae.guides.hierarchical import Hierarchical
from pyrovae.guides.mean_field import MeanField

__all__ = ["Flow", "FullRank", "Guide", "Hierarchical", "MeanField"]
