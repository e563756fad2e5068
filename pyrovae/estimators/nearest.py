"""Distances from images to the training set, which show how hard a split is."""

from typing import NamedTuple

import torch
from torch import Tensor

#: Points and training points per chunk.
CHUNK_ROWS, CHUNK_COLUMNS = 1024, 4096


class Nearest(NamedTuple):
    """Distance to the nearest training point and that point's row, ``[n]`` each."""

    distance: Tensor
    row: Tensor


@torch.no_grad()
def nearest_point(points: Tensor, training: Tensor, own: Tensor | None = None) -> Nearest:
    """Nearest training point of each point, with its distance minₙ ‖x − xₙ‖₂.

    Args:
        points: ``[n, ...]``; trailing dimensions are flattened. uint8 is scaled to [0, 1].
        training: ``[N, ...]``, in the same units.
        own: row of each point in ``training``, ``[n]``, to exclude where the points are training points themselves.

    Returns:
        Distances in the units of the points (pixels in [0, 1], or factors); NaN for a point that is not finite.

    Cost: n · N distances by matrix products, in chunks; the distance to the nearest point is then computed exactly.

    Example:
        >>> import torch
        >>> training = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> nearest_point(torch.tensor([[3.0, 3.0]]), training)
        Nearest(distance=tensor([1.]), row=tensor([1]))
        >>> nearest_point(training, training, own=torch.arange(2)).distance
        tensor([5., 5.])
    """
    rows = [
        _nearest(part, training, None if own is None else own[at : at + CHUNK_ROWS])
        for at, part in zip(range(0, len(points), CHUNK_ROWS), points.split(CHUNK_ROWS), strict=True)
    ]
    differences = [_flat(x) - _flat(training[at]) for x, at in zip(points.split(CHUNK_ROWS), rows, strict=True)]
    return Nearest(torch.cat([difference.norm(dim=1) for difference in differences]), torch.cat(rows))


def _nearest(points: Tensor, training: Tensor, own: Tensor | None) -> Tensor:
    """Row of the nearest training point, ``[n]``."""
    x = _flat(points)
    best = x.new_full((len(x),), torch.inf)
    row = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for start in range(0, len(training), CHUNK_COLUMNS):
        y = _flat(training[start : start + CHUNK_COLUMNS])
        # ‖x − y‖² without ‖x‖², which is the same for every y.
        distance = y.square().sum(1) - 2 * x @ y.T
        if own is not None:
            itself = own[:, None] == torch.arange(start, start + len(y), device=x.device)
            distance = distance.masked_fill(itself, torch.inf)
        smallest, at = distance.min(1)
        row = torch.where(smallest < best, at + start, row)
        best = torch.minimum(best, smallest)
    return row


def _flat(points: Tensor) -> Tensor:
    return points.flatten(1).float() / 255 if points.dtype == torch.uint8 else points.flatten(1)
