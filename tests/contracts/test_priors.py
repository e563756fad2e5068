"""What every prior owes; a new one is in PRIORS and needs no test of its own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrovae import Run, build, make_pair

PRIORS = sorted(build.PRIORS)
#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27


def grid(dimensions: int) -> tuple[Tensor, float]:
    """Points that cover what a prior may reach, and the volume of each."""
    axis = torch.linspace(-12, 12, 601, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)
    return points, float((axis[1] - axis[0]) ** dimensions)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_density_integrates_to_one_and_samples_agree_with_it(name: str, dimensions: int) -> None:
    assert build.PRIORS[name](dimensions).event_shape == (dimensions,)
    prior = build.PRIORS[name](dimensions)()
    assert prior.event_shape == (dimensions,)
    points, volume = grid(dimensions)
    with torch.no_grad():
        density = prior.log_prob(points).exp() * volume
        assert abs(density.sum() - 1) < 1e-4
        torch.manual_seed(0)
        draws = prior.sample((20_000,)).double()
    for power in (1, 2):
        expected = (density[:, None] * points**power).sum(0)
        error = (draws**power).std(0) / 20_000**0.5
        assert ((draws**power).mean(0) - expected).abs().lt(TWO_SIDED * error).all()


@pytest.mark.parametrize("name", PRIORS)
def test_prior_trains_in_lockstep_as_it_does_alone(name: str, assert_trains_in_lockstep: Any) -> None:
    event = torch.Size([1, 4, 4])
    pairs = [make_pair(Run(prior=name, depth=1, width=8, latent_size=2, seed=seed), event) for seed in (0, 1)]
    assert repr(pairs[0].model).startswith("VAE: p(z) p(x|z)")
    assert_trains_in_lockstep(pairs, event)
