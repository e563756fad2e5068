"""Encodings q(z|x_n) of a set of images: draws from them, and the density of their mixture, the inference marginal.

A distribution with batch shape [N] holds N encodings. All arithmetic is in float64, because at σ = 1e-6 the rounding
error of a float32 z is many σ.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from pyrovae.errors import InputError, UnsupportedError
from pyrovae.numerics import logsumexp, normal_log_densities
from pyrovae.programs.distributions import base_normal, mapped, noise_shape, reparameterize

#: Least points per chunk, and elements of its temporaries, which should stay in a CPU's cache.
CHUNK_ROWS = 256
CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
#: Elements that a flow holds for each dimension of z.
FLOW_ELEMENTS = 16
#: Bound on the rounding error of a log density, in nats, up to which it may be a matrix product.
ROUNDING = 1e-8


def encodings(q: Distribution, rows: Tensor | None = None) -> Distribution:
    """Encodings in float64, optionally at some rows only.

    Raises:
        UnsupportedError: ``q`` is neither a diagonal or full-rank normal distribution nor a flow.
        InputError: its batch shape is not [N].
    """
    if len(q.batch_shape) != 1:
        raise InputError(
            f"q: expected one batch dimension, over encodings, got batch shape {list(q.batch_shape)}; "
            "a diagonal normal distribution needs .to_event(1)"
        )
    return mapped(q, lambda parameter: (parameter if rows is None else parameter[rows]).double())


def in_float64(p: Distribution) -> Distribution:
    """``p`` with float64 parameters; unchanged if its type is not supported, such as a mixture."""
    try:
        return mapped(p, Tensor.double)
    except UnsupportedError:
        return p


def draw(q: Distribution, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws of z from each encoding: ``[samples, n, *event_shape]``, in float64.

    Raises:
        InputError: there are no draws or no encodings.
    """
    if samples < 1 or not q.batch_shape.numel():
        raise InputError(f"expected at least 1 draw of at least 1 encoding, got {samples} of {q.batch_shape.numel()}")
    shape = noise_shape(q)
    assert shape is not None, "encodings are reparameterized from normal noise"
    noise = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    return reparameterize(q, noise.to(device_of(q)))


def device_of(q: Distribution) -> torch.device:
    """Device of the parameters of encodings."""
    devices: list[torch.device] = []

    def record(parameter: Tensor) -> Tensor:
        devices.append(parameter.device)
        return parameter

    mapped(q, record)
    return devices[0]


def log_marginal(z: Tensor, q: Distribution, own: Tensor | None = None) -> Tensor:
    """Log density of the inference marginal, log q(z) = log (1/N) Σ_m q(z|x_m), over all m and in float64.

    Args:
        z: points, ``[..., *event_shape]``.
        q: the N encodings, float64.
        own: row of each point's own encoding, in the batch shape of the points, to exclude from the mixture:
            log 1/(N−1) Σ_{m≠own} q(z|x_m).

    Cost: one density per point and encoding, in chunks, so that memory does not grow with N.
    """
    event = len(q.event_shape)
    batch = z.shape[: z.dim() - event]
    points = z.reshape(-1, *q.event_shape)
    owners = [None] * len(points) if own is None else own.expand(batch).reshape(-1).split(chunk_rows(q))
    totals = []
    for rows, owner in zip(points.split(chunk_rows(q)), owners, strict=False):
        total = rows.new_full((len(rows),), -torch.inf)
        for log_q in log_densities(rows, q, owner):
            total = torch.logaddexp(total, logsumexp(log_q, 1))
        totals.append(total)
    count = q.batch_shape.numel() - (own is not None)
    return torch.cat(totals).reshape(batch) - math.log(count)


def chunk_rows(q: Distribution) -> int:
    """Points per chunk; many where there are few encodings."""
    return max(CHUNK_ROWS, CHUNK_ELEMENTS[device_of(q).type] // (q.batch_shape.numel() * _elements(q)))


def log_densities(z: Tensor, q: Distribution, own: Tensor | None = None) -> Iterator[Tensor]:
    """log q(z|x_m) of points under the encodings, in chunks of columns: ``[n, columns]`` each.

    Args:
        z: points, ``[n, *event_shape]``, at most `chunk_rows` of the encodings.
        q: the N encodings, float64.
        own: row of each point's own encoding, ``[n]``, whose log density is set to −∞.
    """
    density, elements = _density(z, q)
    columns = max(1, CHUNK_ELEMENTS[z.device.type] // (CHUNK_ROWS * elements))
    for start in range(0, q.batch_shape[0], columns):
        part = mapped(q, lambda parameter, at=start: parameter[at : at + columns])
        log_q = density(z, part)
        if own is not None:
            mine = own[:, None] == torch.arange(start, start + log_q.shape[1], device=z.device)
            log_q = log_q.masked_fill(mine, -torch.inf)
        yield log_q


def _elements(q: Distribution) -> int:
    """Elements that a density of a point under an encoding needs."""
    return q.event_shape.numel() * (1 if base_normal(q) else FLOW_ELEMENTS)


def _density(z: Tensor, q: Distribution) -> tuple[Callable[[Tensor, Any], Tensor], int]:
    """The fastest function for log q(z|x_m), ``[n, N]``, exact to `ROUNDING`, and the elements that it needs."""
    if not (isinstance(q, Independent) and isinstance(q.base_dist, Normal) and q.event_shape):
        return _of_any, _elements(q)
    reach = z.flatten(1).norm(dim=1).amax() + q.base_dist.loc.flatten(1).norm(dim=1).amax()
    rounding = torch.finfo(z.dtype).eps * (reach / q.base_dist.scale.amin()).square()
    return (_by_product, 1) if rounding < ROUNDING else (_by_differences, _elements(q))


def _of_any(z: Tensor, q: Distribution) -> Tensor:
    return q.log_prob(z.unsqueeze(1))


def _by_differences(z: Tensor, q: Any) -> Tensor:
    """For diagonal normals, four times as fast as their `log_prob`."""
    loc, scale = q.base_dist.loc.flatten(1), q.base_dist.scale.flatten(1)
    squares = (z.flatten(1).unsqueeze(1) - loc).div_(scale).square_().sum(-1)
    return -0.5 * squares - (scale.log() + math.log(2 * math.pi) / 2).sum(-1)


def _by_product(z: Tensor, q: Any) -> Tensor:
    return normal_log_densities(z.flatten(1), q.base_dist.loc.flatten(1), q.base_dist.scale.flatten(1))
