"""What every prior owes; a new one is in PRIORS and needs no test of its own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrovae import Pair, Run, build, make_pair

PRIORS = sorted(build.PRIORS)
EVENT = torch.Size([1, 4, 4])
#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27


def images(number: int = 20) -> Tensor:
    return torch.randint(0, 256, (number, *EVENT), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pair_with(name: str, dimensions: int = 2, **settings: Any) -> Pair:
    """A pair with that prior, whose parameters are away from where they start."""
    run = Run(prior=name, depth=1, width=8, latent_size=dimensions, components=5, **settings)
    pair = make_pair(run, EVENT, images=images())
    with torch.no_grad():
        for number, parameter in enumerate(pair.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    pair.refresh(images())
    return pair


def grid(dimensions: int) -> tuple[Tensor, float]:
    """Points that cover what a prior may reach, and the volume of each."""
    reach, number = {1: (60, 120_001), 2: (12, 601)}[dimensions]
    axis = torch.linspace(-reach, reach, number, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)
    return points, float((axis[1] - axis[0]) ** dimensions)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_density_integrates_to_one_and_samples_agree_with_it(name: str, dimensions: int) -> None:
    pair = pair_with(name, dimensions)
    assert pair.model.prior.event_shape == (dimensions,)
    _, trace = pair.traces(images()[:2] / 255, index=torch.arange(2))
    known = trace.nodes["z"]["fn"]
    for prior in (pair.model.prior(), known):
        assert prior.event_shape == (dimensions,)
        entries = prior.batch_shape.numel()
        points, volume = grid(dimensions)
        with torch.no_grad():
            density = prior.log_prob(points.unsqueeze(1)).reshape(len(points), entries).exp() * volume
            assert (density.sum(0) - 1).abs().max() < 1e-4
            torch.manual_seed(0)
            draws = prior.sample((20_000,)).double().reshape(20_000, entries, dimensions)
        for power in (1, 2):
            expected = density.T @ points**power
            error = (draws**power).std(0) / 20_000**0.5
            assert ((draws**power).mean(0) - expected).abs().lt(TWO_SIDED * error).all()


@pytest.mark.parametrize("name", PRIORS)
def test_density_is_that_of_the_point_in_either_precision(name: str) -> None:
    prior = pair_with(name).model.prior()
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        single, double = prior.log_prob(z), prior.log_prob(z.double())
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PRIORS)
def test_prior_trains_in_lockstep_as_it_does_alone(name: str, assert_trains_in_lockstep: Any) -> None:
    pairs = [pair_with(name, seed=seed) for seed in (0, 1)]
    assert repr(pairs[0].model).startswith("VAE: p(z) p(x|z)")
    assert_trains_in_lockstep(pairs, EVENT)
