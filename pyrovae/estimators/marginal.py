"""Encodings q(z|x_n) of a set of images: draws from them, and the density of their mixture, the inference marginal.

A distribution with batch shape [N] holds N encodings. All arithmetic is in float64, because at σ = 1e-6 the rounding
error of a float32 z is many σ.
"""

import math
from collections.abc import Callable, Iterator
from functools import reduce

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyrovae.errors import InputError, UnsupportedError
from pyrovae.numerics import logsumexp_, natural_parameters, sufficient_statistics
from pyrovae.programs.distributions import base_normal, mapped, noise_shape, reparameterize

#: Least points per chunk, and elements of its temporaries, which should stay in a CPU's cache.
CHUNK_ROWS = 512
CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
#: Elements that a flow holds for each dimension of z.
FLOW_ELEMENTS = 16
#: Bound on the rounding error of a log density, in nats, up to which it may be a matrix product.
ROUNDING = 1e-6


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

    Cost: one density per point and encoding. Memory: one chunk of densities and a copy of the parameters of ``q``.
    """
    batch = z.shape[: z.dim() - len(q.event_shape)]
    total = log_total(z.reshape(-1, *q.event_shape), q, None if own is None else own.expand(batch).reshape(-1))
    return total.reshape(batch) - math.log(q.batch_shape.numel() - (own is not None))


def log_total(z: Tensor, q: Distribution, own: Tensor | None = None) -> Tensor:
    """log Σ_m q(z|x_m), ``[n]``; arguments as in `log_densities`."""
    return torch.cat(
        [
            reduce(torch.logaddexp, (logsumexp_(log_q, 1) for _, log_q in columns))
            for _, columns in log_densities(z, q, own)
        ]
    )


def log_densities(
    z: Tensor, q: Distribution, own: Tensor | None = None
) -> Iterator[tuple[slice, Iterator[tuple[slice, Tensor]]]]:
    """log q(z|x_m) of points under the encodings, in chunks of points, and each of these in chunks of encodings.

    Args:
        z: points, ``[n, *event_shape]``.
        q: the N encodings, float64.
        own: row of each point's own encoding, ``[n]``, whose log density is set to −∞; −1 for none.

    Yields:
        The points, and an iterator over encodings and the log densities, ``[points, encodings]``, which may be
        overwritten.
    """
    density, elements = _density(z, q)
    most = CHUNK_ELEMENTS[z.device.type]
    size = max(1, most // (CHUNK_ROWS * elements))

    def columns(points: slice) -> Iterator[tuple[slice, Tensor]]:
        for part in _slices(q.batch_shape[0], size):
            log_q = density(points, part)
            if own is not None:
                mine = own[points, None] == torch.arange(part.start, part.stop, device=z.device)
                log_q = log_q.masked_fill_(mine, -torch.inf)
            yield part, log_q

    # More points at once where there are few encodings.
    for points in _slices(len(z), max(CHUNK_ROWS, most // (q.batch_shape[0] * elements))):
        yield points, columns(points)


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _density(z: Tensor, q: Distribution) -> tuple[Callable[[slice, slice], Tensor], int]:
    """The fastest function for log q(z|x_m), exact to `ROUNDING`, and the elements that it needs for each.

    The function maps points and encodings to ``[points, encodings]``.
    """
    elements = q.event_shape.numel() * (1 if base_normal(q) else FLOW_ELEMENTS)

    def of_any(points: slice, part: slice) -> Tensor:
        return mapped(q, lambda parameter: parameter[part]).log_prob(z[points].unsqueeze(1))

    match q:
        case MultivariateNormal():
            loc, scale = q.loc, q.scale_tril
        case Independent(base_dist=Normal()) if q.event_shape:
            loc, scale = q.base_dist.loc.flatten(1), q.base_dist.scale.flatten(1)
        case _:
            return of_any, elements
    full_rank, x = scale.dim() > loc.dim(), z.flatten(1)
    centred_loc, centred_x = loc - loc.mean(0), x - loc.mean(0)  # smaller numbers, smaller rounding errors
    parameters, constant = natural_parameters(centred_loc, scale)
    reach = centred_x.norm(dim=1).amax() + centred_loc.norm(dim=1).amax()
    precision = 2 * parameters[:, : -loc.shape[1]].norm(dim=1).amax()
    if torch.finfo(x.dtype).eps * reach.square() * precision < ROUNDING:
        statistics = torch.cat([sufficient_statistics(centred_x, full_rank), torch.ones_like(x[:, :1])], 1)
        parameters = torch.cat([parameters, constant[:, None]], 1)
        return lambda points, part: statistics[points] @ parameters[part].mT, 1
    if full_rank:
        return of_any, elements
    log_scale = (scale.log() + math.log(2 * math.pi) / 2).sum(1)

    def by_differences(points: slice, part: slice) -> Tensor:
        """Four times as fast as `log_prob`."""
        squares = (x[points].unsqueeze(1) - loc[part]).div_(scale[part]).square_().sum(-1)
        return squares.mul_(-0.5).sub_(log_scale[part])

    return by_differences, elements
