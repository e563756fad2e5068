"""Tetrominoes: 32×32 RGB images of a J tetromino with five continuous factors of variation.

The data set of Bozkurt et al. (AISTATS 2021): 163,840 images, one uniform draw of the factors in each cell of a
16×8×5×16×16 grid. The same images are also rendered at 16×16.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import torch
from torch import Tensor

from pyrovae.data import Source
from pyrovae.data.cache import cached

#: Side of the authors' images, in whose pixels factors are given.
SIDE: Final = 32
#: Range of each factor: degrees, hue, pixels per cell, and pixels.
RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"angle": (0, 337.5), "colour": (0, 0.875), "scale": (2, 5), "x": (8, 23), "y": (8, 23)}
)
BINS = (16, 8, 5, 16, 16)
# Corners of the J in cells, relative to the centre (1, 1.5) of its box, y downwards.
_CORNERS = torch.tensor([[1, 0], [2, 0], [2, 3], [0, 3], [0, 2], [1, 2]]) - torch.tensor([1, 1.5])
# Images per chunk, whose temporaries should fit in a CPU's cache.
_CHUNK = 32


def sample_factors(seed: int = 0) -> Tensor:
    """Stratified draws of the factors, one uniform draw in each of the 163,840 cells.

    Returns:
        ``[163840, 5]``: angle, colour, scale, x, y.

    Example:
        >>> sample_factors().shape
        torch.Size([163840, 5])
    """
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cartesian_prod(*(torch.arange(bins) for bins in BINS))
    uniform = torch.rand(cells.shape, generator=generator, dtype=torch.float64)
    low, high = torch.tensor(list(RANGES.values()), dtype=torch.float64).T
    return (low + (high - low) * (cells + uniform) / torch.tensor(BINS)).float()


def render(factors: Tensor, side: int = SIDE) -> Tensor:
    """Renders tetrominoes exactly: a pixel's value is the area that the figure covers.

    Args:
        factors: ``[N, 5]``: angle in degrees, colour (hue in [0, 1]), scale in pixels per cell, and x, y in pixels, all
            for an image of 32×32 pixels.
        side: pixels along each side; with 16, a pixel is the mean of 2×2 of those.

    Returns:
        ``[N, 3, side, side]`` in [0, 1]: HSV with the given hue, saturation 1, and the covered area as value.

    Raises:
        ValueError: the factors are not of shape [N, 5].

    Example:
        >>> import torch
        >>> image = render(torch.tensor([[0.0, 0.0, 2.0, 16.0, 16.0]]))
        >>> image.shape, round(float(image.sum()), 2)  # four cells of 2 × 2 pixels, red
        (torch.Size([1, 3, 32, 32]), 16.0)
    """
    if factors.dim() != 2 or factors.shape[1] != len(RANGES):
        raise ValueError(f"factors: expected shape [N, {len(RANGES)}], got {list(factors.shape)}")
    images = factors.new_empty(len(factors), 3, side, side)
    chunk = _CHUNK * SIDE**2 // side**2
    for rows, out in zip(factors.split(chunk), images.split(chunk), strict=True):
        torch.mul(_rgb(rows[:, 1])[:, :, None, None], _coverage(rows, side)[:, None], out=out)
    return images


def _rgb(hue: Tensor) -> Tensor:
    """The pure colour of a hue, ``[N] → [N, 3]``."""
    turns = (hue[:, None] * 6 + hue.new_tensor([0, 4, 2])).remainder(6)
    return ((turns - 3).abs() - 1).clamp(0, 1)


def _coverage(factors: Tensor, side: int) -> Tensor:
    """Covered area of every pixel, ``[N, 5] → [N, side, side]``.

    By Green's theorem the area of a polygon inside the pixel [c, c + 1] × [r, r + 1] is a sum over its edges of
    ∫ clamp(x − c, 0, 1) dy, taken over the part of the edge that lies between r and r + 1.
    """
    # Coordinates in which pixel (r, c) is the square [c, c + 1] × [r, r + 1].
    start = _corners(factors) * (side / SIDE)
    end = start.roll(-1, dims=1)
    x0, y0 = start.unbind(-1)
    dx, dy = (end - start).unbind(-1)
    rows = torch.arange(side + 1, dtype=factors.dtype, device=factors.device)
    # An edge is in row r for t between t[r] and t[r + 1], in this order if it leads down, else in the other;
    # a level edge has dy = 0 and adds nothing.
    t = ((rows - y0[..., None]) / torch.where(dy == 0, 1, dy)[..., None]).clamp(0, 1)
    x = x0[..., None] + t * dx[..., None]
    height = t.diff(dim=-1) * dy.abs()[..., None]
    return torch.einsum("ner,nerc->nrc", height, _mean_clamp(x[..., :-1], x[..., 1:], side)).clamp_(0, 1)


def _corners(factors: Tensor) -> Tensor:
    """Corners of the figure in an image of 32×32 pixels, ``[N, 6, 2]``."""
    angle, _, scale, x, y = factors.unbind(1)
    cos, sin = (scale * torch.cos(angle.deg2rad())), (scale * torch.sin(angle.deg2rad()))
    u, v = _CORNERS.to(factors).T
    # Half a pixel, because pixel centres lie at integers; 1/32, because the authors' grid does.
    shift = 0.5 + 1 / SIDE
    return torch.stack(
        [
            x[:, None] + u * cos[:, None] + v * sin[:, None] + shift,
            y[:, None] - u * sin[:, None] + v * cos[:, None] + shift,
        ],
        dim=-1,
    )


def _mean_clamp(x0: Tensor, x1: Tensor, side: int) -> Tensor:
    """Mean of clamp(x − c, 0, 1) for x running from x0 to x1, for every column c: ``[...] → [..., side]``."""
    columns = torch.arange(side, dtype=x0.dtype, device=x0.device)
    low, high = torch.minimum(x0, x1), torch.maximum(x0, x1)
    # The antiderivative of clamp(v, 0, 1) is clamp(v, 0, 1)² / 2 + max(v − 1, 0).
    v0, v1 = low[..., None] - columns, high[..., None] - columns
    c0, c1 = v0.clamp(0, 1), v1.clamp(0, 1)
    area = (c1 + c0) * (c1 - c0) / 2 + (v1 - 1).clamp_(min=0) - (v0 - 1).clamp_(min=0)
    run = (high - low)[..., None]
    return torch.where(run > 1e-3, area / run, (c0 + c1) / 2)


@cache
def source(side: Literal[16, 32] = SIDE) -> Source:
    """A J tetromino with five continuous factors, rendered when asked for and cached; side is in pixels."""
    factors = sample_factors()
    low, high = torch.tensor(list(RANGES.values())).T
    return Source(
        "tetrominoes", len(factors), lambda rows: _images(factors[rows], side), (factors - low) / (high - low)
    )


def _images(factors: Tensor, side: int) -> Tensor:
    """Rendered images as uint8, ``[n, 3, side, side]``."""
    # The key holds this file too: images made by other code are other images.
    key = hashlib.sha256(Path(__file__).read_bytes() + factors.numpy().tobytes()).hexdigest()[:16]
    shape = torch.Size([len(factors), 3, side, side])
    return cached(f"tetrominoes-{side}-{key}", shape, lambda: quantised(factors, side))


def quantised(factors: Tensor, side: int = SIDE) -> Tensor:
    """Renders as `render` does, to uint8 images: ``[n, 5] → [n, 3, side, side]``."""
    return torch.cat([(render(rows, side) * 255).round_().to(torch.uint8) for rows in factors.split(1024)])
