"""What every likelihood owes; a new one is in LIKELIHOODS and needs no test of its own."""

import pytest
import torch

from pyrovae import Run, build

LIKELIHOODS = sorted(build.LIKELIHOODS)
EVENT = torch.Size([1, 2, 3])


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_density_of_one_pixel_is_normalised(name: str) -> None:
    likelihood = build.make_likelihood(Run(likelihood=name), torch.Size([1]))
    h = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    with torch.no_grad():
        p = likelihood(h)
        if p.base_dist.has_enumerate_support:
            total = sum(p.log_prob(torch.full((1,), value, dtype=torch.float64)).exp() for value in (0, 1))
        else:
            x = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
            total = p.log_prob(x[:, None, None]).exp().sum(0) * (x[1] - x[0])
    torch.testing.assert_close(total, torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_distortion_of_any_features_is_above_the_floor(name: str) -> None:
    likelihood = build.make_likelihood(Run(likelihood=name), EVENT)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, *EVENT, generator=generator)
    assert likelihood.support.check(x).all()
    floor = likelihood.floor(x)
    assert floor.shape == (50,)
    with torch.no_grad():
        for size in (0.1, 1.0, 5.0):
            h = size * torch.randn(50, likelihood.features, generator=generator)
            assert (-likelihood(h).log_prob(x) >= floor - 1e-4).all()
        best = torch.stack([likelihood.initial_features(image) for image in x.clamp(0.01, 0.99)])
        torch.testing.assert_close(
            -likelihood(best).log_prob(x.clamp(0.01, 0.99)), likelihood.floor(x.clamp(0.01, 0.99))
        )


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_initial_features_reproduce_the_mean_image(name: str) -> None:
    likelihood = build.make_likelihood(Run(likelihood=name), EVENT)
    mean = torch.linspace(0.01, 0.99, 6).reshape(EVENT)
    torch.testing.assert_close(likelihood(likelihood.initial_features(mean)).mean, mean)
