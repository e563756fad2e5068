"""Generative models: a prior p(z) and a likelihood p(x|z), written as a Pyro program."""

from pyrovae.models.gap import GapVAE
from pyrovae.models.hierarchical import HierarchicalVAE
from pyrovae.models.vae import VAE

__all__ = ["VAE", "GapVAE", "HierarchicalVAE"]
