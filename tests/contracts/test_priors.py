"""The contract of priors: every prior in `pyrovae.parts` is tested here and needs no further test.

Expectations under a density are integrals over all z, computed on a grid of Cauchy quantiles with random shifts. They
are unbiased for any density, however heavy its tails, and the shifts give their standard error. Samples are compared
with the density by expectations of bounded functions, which always exist.
"""

import math
from typing import Any, NamedTuple

import pytest
import torch
from helpers import every_prior
from pyro.ops.provenance import get_provenance, track_provenance
from scipy import stats
from seeds import any_seed
from torch import Tensor
from torch.distributions import Distribution, Independent, StudentT, biject_to

from pyrovae import Pair, Run, make_pair, parts

PRIORS = list(parts.names("prior"))
EVENT = torch.Size([1, 4, 4])
#: Settings of priors.
SMALL = {"components": 5, "hidden": 8, "solver_steps": 8}
DRAWS, SHIFTS, FREQUENCIES = 20_000, 16, 8
#: Grid points per dimension, by the number of dimensions.
POINTS = {1: 2**13, 2: 96}
#: Failure rate 2e-5, two-sided: for normal errors, and for errors estimated from the shifts.
TWO_SIDED = 4.27
TWO_SIDED_SHIFTS = float(stats.t.isf(1e-5, SHIFTS - 1))


def images(number: int = 20) -> Tensor:
    return torch.randint(0, 256, (number, *EVENT), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pair_with(name: str, dimensions: int = 2, seed: int = 0, model: str = "vae") -> Pair:
    """A pair with that prior, small and with perturbed parameters."""
    small = {key: value for key, value in SMALL.items() if key in parts.settings_of("prior", name)}
    run = Run(model=model, prior=name, depth=1, width=8, latent_size=dimensions, seed=seed, **small)
    pair = make_pair(run, EVENT, images=images())
    with torch.no_grad():
        for number, parameter in enumerate(pair.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    pair.refresh(images())
    return pair


class Grid(NamedTuple):
    """Points ``[SHIFTS, n, d]``, and weights ``[SHIFTS, n]`` with E[Σ_n w_n f(z_n)] = ∫ f(z) dz for each shift."""

    points: Tensor
    weights: Tensor

    def expectation(self, p: Distribution, values: Tensor) -> tuple[Tensor, Tensor]:
        """∫ p(z) f(z) dz of values f ``[SHIFTS, n, functions]`` and its standard error: ``[*batch, functions]``."""
        density = p.log_prob(self.points.reshape(-1, *[1] * len(p.batch_shape), self.points.shape[-1])).exp()
        terms = density.reshape(*self.weights.shape, -1) * self.weights.unsqueeze(-1)
        means = torch.einsum("snb,snf->sbf", terms, values).reshape(SHIFTS, *p.batch_shape, values.shape[-1])
        return means.mean(0), means.std(0) / SHIFTS**0.5


def cauchy_grid(centre: Tensor, scale: Tensor, seed: int = 0) -> Grid:
    """A grid with spacing proportional to 1 / Cauchy(z; centre, scale) in each dimension."""
    axes = [torch.arange(POINTS[len(centre)], dtype=torch.float64)] * len(centre)
    nodes = torch.cartesian_prod(*axes).reshape(-1, len(centre))
    shifts = torch.rand(
        SHIFTS, 1, len(centre), dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 2000)
    )
    u = (nodes + shifts) / POINTS[len(centre)]
    t = torch.tan(math.pi * (u - 0.5))
    return Grid(centre + scale * t, (math.pi * scale * (1 + t**2)).prod(-1) / len(nodes))


@any_seed
@pytest.mark.parametrize("degrees", [1.0, 2.5, 30.0])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_grid_integrates_heavy_tails_to_a_tenth_of_a_percent(degrees: float, dimensions: int, seed: int) -> None:
    p = Independent(StudentT(torch.full((dimensions,), degrees, dtype=torch.float64)), 1)
    grid = cauchy_grid(torch.zeros(dimensions, dtype=torch.float64), torch.ones(dimensions, dtype=torch.float64), seed)
    total, error = grid.expectation(p, torch.ones_like(grid.weights).unsqueeze(-1))
    assert TWO_SIDED_SHIFTS * error < 1e-3
    assert abs(total - 1) < TWO_SIDED_SHIFTS * error + 1e-6


@any_seed
@every_prior
@pytest.mark.parametrize("dimensions", [1, 2])
def test_density_is_normalised_and_samples_follow_it(name: str, dimensions: int, seed: int) -> None:
    pair = pair_with(name, dimensions, seed)
    _, trace = pair.traces(images()[:2] / 255, index=torch.arange(2))
    for prior in (pair.model.prior(), trace.nodes["z"]["fn"]):
        assert prior.event_shape == (dimensions,)
        torch.manual_seed(seed)
        draws = prior.sample((DRAWS,)).double()
        low, centre, high = torch.quantile(draws.flatten(0, -2), torch.tensor([0.25, 0.5, 0.75]).double(), dim=0)
        scale = high - low
        grid = cauchy_grid(centre, scale, seed)
        frequencies = torch.randn(
            dimensions, FREQUENCIES, generator=torch.Generator().manual_seed(seed + 1000)
        ).double()

        def waves(z: Tensor, shift: Tensor = centre, width: Tensor = scale, omega: Tensor = frequencies) -> Tensor:
            """The constant 1, and cos and sin of ω · z at several frequencies."""
            phase = (z - shift) / width @ omega
            return torch.cat([torch.ones_like(phase[..., :1]), phase.cos(), phase.sin()], -1)

        with torch.no_grad():
            expected, grid_error = grid.expectation(prior, waves(grid.points))
        tolerance = TWO_SIDED_SHIFTS * grid_error + 1e-4
        assert ((expected[..., 0] - 1).abs() < tolerance[..., 0]).all()
        of_draws = waves(draws)
        tolerance = tolerance + TWO_SIDED * of_draws.std(0) / DRAWS**0.5
        assert ((of_draws.mean(0) - expected).abs() < tolerance).all()


@pytest.mark.parametrize("name", PRIORS)
def test_density_has_the_precision_of_the_point(name: str) -> None:
    prior = pair_with(name).model.prior()
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        single, double = prior.log_prob(z), prior.log_prob(z.double())
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["vae", "gap"])
@pytest.mark.parametrize("name", PRIORS)
def test_prior_is_a_distribution_as_pyro_expects(name: str, model: str) -> None:
    pair = pair_with(name, model=model)
    rows = torch.arange(2)
    _, trace = pair.traces(images()[:2] / 255, index=rows)
    z = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    for prior, batch in ((pair.model.prior(), ()), (trace.nodes["z"]["fn"], (2,))):
        assert (prior.batch_shape, prior.event_shape) == (batch, (2,))
        assert biject_to(prior.support)(z).shape == z.shape
        wide = prior.expand([3, 2])
        assert wide.batch_shape == (3, 2)
        torch.testing.assert_close(wide.log_prob(z.expand(3, 2, 2)), prior.log_prob(z).expand(3, 2))
        if prior.has_rsample:
            assert prior.rsample((3,)).shape == (3, *batch, 2)
        else:
            with pytest.raises(NotImplementedError):
                prior.rsample()
        assert get_provenance(prior.log_prob(track_provenance(z, frozenset({"z"})))) == {"z"}


@every_prior
def test_prior_has_the_same_gradients_in_lockstep(name: str, assert_trains_in_lockstep: Any) -> None:
    pairs = [pair_with(name, seed=seed) for seed in (0, 1)]
    assert repr(pairs[0].model).startswith("VAE: p(z) p(x|z)")
    assert_trains_in_lockstep(pairs, EVENT)
