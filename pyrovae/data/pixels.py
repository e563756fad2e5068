"""What becomes of grey pixels: taken as they are, or binarised once or anew at every step."""

from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.data import Dataset, as_input
from pyrovae.errors import InputError


def continuous(data: Dataset) -> Dataset:
    """Grey values in [0, 1] as they are."""
    return data


def static(data: Dataset) -> Dataset:
    """Every image binarised once, with a fixed seed: x ~ Bernoulli(grey value), and then it stays.

    Raises:
        InputError: the images do not have 256 grey values.
    """
    return replace(data, train=_binarised(data.train, seed=0), test=_binarised(data.test, seed=1))


def dynamic(data: Dataset) -> Dataset:
    """Training images binarised anew at every step; what is measured is measured on the static binarisation.

    Raises:
        InputError: the images do not have 256 grey values.
    """
    return replace(static(data), grey=data.train)


def _binarised(images: Tensor, seed: int) -> Tensor:
    """Images of 0 and 255: a pixel x is lit with probability x / 255."""
    if images.dtype != torch.uint8:
        raise InputError("pixels: expected images with 256 grey values (uint8) to binarise, got floats")
    generator = torch.Generator().manual_seed(seed)
    lit = [as_input(chunk, thresholds(chunk.shape, generator)) for chunk in images.split(4096)]
    return torch.cat([(chunk * 255).to(torch.uint8) for chunk in lit])


def thresholds(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Uniform thresholds for `as_input`, 0 to 254, on the device of the generator."""
    return torch.randint(255, shape, dtype=torch.uint8, generator=generator, device=generator.device)
