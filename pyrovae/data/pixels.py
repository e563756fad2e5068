"""Treatment of grey pixels: unchanged, binarised once, or binarised with new noise at every training step."""

from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.data import Dataset, as_input
from pyrovae.errors import InputError
from pyrovae.programs.noise import generator

#: Images whose thresholds are drawn together.
BLOCK = 1024


def continuous(data: Dataset) -> Dataset:
    """Grey values in [0, 1], unchanged."""
    return data


def static(data: Dataset) -> Dataset:
    """All images binarised once, x ~ Bernoulli(grey value); the draws of an image depend on its row in the source only.

    Raises:
        InputError: the images are not uint8.
    """
    every = torch.arange(len(data.train) + len(data.test))
    train, test = every.split([len(data.train), len(data.test)]) if data.rows is None else data.rows
    return replace(data, train=_binarised(data.train, train), test=_binarised(data.test, test))


def dynamic(data: Dataset) -> Dataset:
    """Training images binarised with new noise at every step; measurements use the static binarisation.

    Raises:
        InputError: the images are not uint8.
    """
    return replace(static(data), grey=data.train)


def _binarised(images: Tensor, rows: Tensor) -> Tensor:
    """Images of 0 and 255; a grey value x becomes 255 with probability x / 255."""
    if images.dtype != torch.uint8:
        raise InputError("pixels: expected images with 256 grey values (uint8) to binarise, got floats")
    lit = torch.empty_like(images)
    block_of_row = rows // BLOCK
    for block in block_of_row.unique().tolist():
        chosen = block_of_row == block
        draws = thresholds(torch.Size([BLOCK, *images.shape[1:]]), generator(0, "static", block))
        lit[chosen] = (as_input(images[chosen], draws[rows[chosen] % BLOCK]) * 255).to(torch.uint8)
    return lit


def thresholds(shape: torch.Size, draws: torch.Generator) -> Tensor:
    """Uniform uint8 thresholds in [0, 254] for `as_input`, on the generator's device."""
    return torch.randint(255, shape, dtype=torch.uint8, generator=draws, device=draws.device)
