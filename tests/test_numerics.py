"""Numerics that torch lacks."""

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from pyrovae.numerics import logsumexp, logsumexp_, natural_parameters, normal_log_densities, sufficient_statistics


@pytest.mark.parametrize("spread", [1.0, 100.0, 1e6])
def test_logsumexp_and_its_gradient_are_those_of_torch(spread: float) -> None:
    x = (spread * torch.randn(5, 50, generator=torch.Generator().manual_seed(0))).requires_grad_()
    found, expected = logsumexp(x, 1), x.logsumexp(1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(logsumexp_(x.detach().clone(), 1), expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), x)[0] for each in (found, expected)))


def test_logsumexp_of_infinities_is_that_of_torch() -> None:
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([[-inf, -inf], [-inf, 0.0], [inf, 0.0], [nan, 0.0], [inf, -inf]])
    torch.testing.assert_close(logsumexp(x, 1), x.logsumexp(1), equal_nan=True)
    without = x[[0, 1, 3]]
    torch.testing.assert_close(logsumexp_(without.clone(), 1), without.logsumexp(1), equal_nan=True)


@pytest.mark.parametrize("scale", [1e-2, 1.0])
def test_densities_are_those_of_torch(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    loc, noise = (torch.randn(5, 7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    scales = scale * (1 + torch.rand(7, 3, generator=generator, dtype=torch.float64))
    z = loc + scale * noise
    expected = Normal(loc[0], scales).log_prob(z.unsqueeze(-2)).sum(-1)
    torch.testing.assert_close(normal_log_densities(z, loc[0], scales), expected, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-2, 1.0])
@pytest.mark.parametrize("size", [1, 4])
def test_natural_parameters_of_full_rank_distributions_give_the_densities_of_torch(scale: float, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    loc, noise, diagonal = (torch.randn(7, size, generator=generator, dtype=torch.float64) for _ in range(3))
    lower = torch.randn(7, size, size, generator=generator, dtype=torch.float64).tril(-1)
    scale_tril = scale * (lower + torch.diag_embed(0.5 + diagonal.abs()))
    z = loc + scale * noise
    parameters, constant = natural_parameters(loc, scale_tril)
    found = sufficient_statistics(z, full_rank=True) @ parameters.T + constant
    expected = MultivariateNormal(loc, scale_tril=scale_tril).log_prob(z.unsqueeze(1))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-8)
