"""Treatment of grey pixels: unchanged, binarised once, or binarised afresh at every training step."""

from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.data import Dataset, as_input
from pyrovae.errors import InputError


def continuous(data: Dataset) -> Dataset:
    """Grey values in [0, 1], unchanged."""
    return data


def static(data: Dataset) -> Dataset:
    """All images binarised once with a fixed seed, x ~ Bernoulli(grey value).

    Raises:
        InputError: the images are not uint8.
    """
    return replace(data, train=_binarised(data.train, seed=0), test=_binarised(data.test, seed=1))


def dynamic(data: Dataset) -> Dataset:
    """Training images binarised afresh at every step; measurements use the static binarisation.

    Raises:
        InputError: the images are not uint8.
    """
    return replace(static(data), grey=data.train)


def _binarised(images: Tensor, seed: int) -> Tensor:
    """Images of 0 and 255; a grey value x becomes 255 with probability x / 255."""
    if images.dtype != torch.uint8:
        raise InputError("pixels: expected images with 256 grey values (uint8) to binarise, got floats")
    generator = torch.Generator().manual_seed(seed)
    lit = [as_input(chunk, thresholds(chunk.shape, generator)) for chunk in images.split(4096)]
    return torch.cat([(chunk * 255).to(torch.uint8) for chunk in lit])


def thresholds(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Uniform uint8 thresholds in [0, 254] for `as_input`, on the generator's device."""
    return torch.randint(255, shape, dtype=torch.uint8, generator=generator, device=generator.device)
