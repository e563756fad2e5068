"""Networks of a user whose modules have a state or draw numbers."""

from math import prod

from torch import nn

from pyrovae.networks import Sizes


def _network(inputs: int, outputs: int, middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), middle, nn.ReLU(), nn.Linear(8, outputs))


def normalised(sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    """Networks with batch normalisation."""
    encoder = nn.Sequential(nn.Flatten(), _network(prod(sizes.image), sizes.encoder, nn.BatchNorm1d(8)))
    return encoder, _network(sizes.latent, sizes.decoder, nn.BatchNorm1d(8))


def dropped_out(sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    """An encoder with dropout."""
    encoder = nn.Sequential(nn.Flatten(), _network(prod(sizes.image), sizes.encoder, nn.Dropout()))
    return encoder, _network(sizes.latent, sizes.decoder, nn.Identity())
