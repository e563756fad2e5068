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
    """Nearest training point of each point, with its distance minₙ ‖x − xₙ‖₂; the first one where several are nearest.

    Args:
        points: ``[n, ...]``; trailing dimensions are flattened. uint8 is scaled to [0, 1].
        training: ``[N, ...]``, in the same units.
        own: row of each point in ``training``, ``[n]``, to exclude where the points are training points themselves.

    Returns:
        Distances in the units of the points (pixels in [0, 1], or factors); NaN for a point that is not finite, or
        that has no other point.

    Cost: n · N distances by matrix products, in chunks. Those that their rounding error cannot tell from the smallest
    are then computed from differences, in float64: about one a point, unless many training points are equal.

    Example:
        >>> import torch
        >>> training = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> nearest_point(torch.tensor([[3.0, 3.0]]), training)
        Nearest(distance=tensor([1.]), row=tensor([1]))
        >>> nearest_point(training, training, own=torch.arange(2)).distance
        tensor([5., 5.])
    """
    centre = _flat(training[:CHUNK_COLUMNS]).mean(0)
    owners = [None] * len(points) if own is None else own.split(CHUNK_ROWS)
    found = [
        _nearest(part, training, centre, owner) for part, owner in zip(points.split(CHUNK_ROWS), owners, strict=False)
    ]
    distance, row = (torch.cat(values) for values in zip(*found, strict=True))
    return Nearest(distance.masked_fill(distance.isinf(), torch.nan).to(centre.dtype), row)


def _nearest(points: Tensor, training: Tensor, centre: Tensor, own: Tensor | None) -> Nearest:
    """As `nearest_point`, for one chunk of points; the distance is infinite where there is none."""
    x = _flat(points) - centre
    x = x.masked_fill_(~x.norm(dim=1, keepdim=True).isfinite(), torch.nan)
    distance = centre.new_full((len(x),), torch.inf, dtype=torch.float64)
    row = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for start in range(0, len(training), CHUNK_COLUMNS):
        part = training[start : start + CHUNK_COLUMNS]
        i, j = _candidates(x, _flat(part) - centre, None if own is None else own - start, distance)
        closest = _closest(_distances(points, part, i, j), i, j, len(x))
        row = torch.where(closest.distance < distance, start + closest.row, row)
        distance = torch.minimum(distance, closest.distance)
    return Nearest(distance, row)


def _candidates(x: Tensor, y: Tensor, own: Tensor | None, best: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of pairs of points that may be closer than the best distances so far, given the error of a product.

    The error of ‖y‖² − 2 x·y is at most (D + 4) ε (‖x‖ + ‖y‖)², with ε half the spacing of numbers at 1.
    """
    norm, other = x.norm(dim=1), y.norm(dim=1)
    distance = torch.addmm(other.square(), x, y.T, alpha=-2)  # ‖x − y‖² − ‖x‖²
    if own is not None:
        itself = own[:, None] == torch.arange(len(y), device=x.device)
        distance.masked_fill_(itself, torch.inf)
    of = torch.finfo(x.dtype)
    error = (x.shape[1] + 4) * of.eps / 2 * (norm + other.max()).square()
    limit = torch.minimum(distance.amin(1), best.square().to(x.dtype) - norm.square()) + 2 * error
    # An excluded pair, at ∞, is no candidate where there is no other.
    return (distance <= limit.clamp(max=of.max)[:, None]).nonzero(as_tuple=True)


def _distances(points: Tensor, training: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """‖points[i] − training[j]‖₂ in float64."""
    pairs = zip(i.split(CHUNK_ROWS), j.split(CHUNK_ROWS), strict=True)
    return torch.cat([(_flat(points[a]).double() - _flat(training[b]).double()).norm(dim=1) for a, b in pairs])


def _closest(distance: Tensor, i: Tensor, j: Tensor, size: int) -> Nearest:
    """The smallest distance of each point i to a point j, and the first such j."""
    smallest = distance.new_full((size,), torch.inf).scatter_reduce(0, i, distance, "amin")
    equal = distance == smallest[i]
    row = torch.zeros(size, dtype=torch.long, device=i.device)
    return Nearest(smallest, row.scatter_reduce(0, i[equal], j[equal], "amin", include_self=False))


def _flat(points: Tensor) -> Tensor:
    return points.flatten(1).float().div_(255) if points.dtype == torch.uint8 else points.flatten(1)
