"""Numerics that torch lacks."""

import pytest
import torch

from pyrovae.numerics import logsumexp


@pytest.mark.parametrize("spread", [1.0, 100.0, 1e6])
def test_logsumexp_and_its_gradient_are_those_of_torch(spread: float) -> None:
    x = (spread * torch.randn(5, 50, generator=torch.Generator().manual_seed(0))).requires_grad_()
    found, expected = logsumexp(x, 1), x.logsumexp(1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), x)[0] for each in (found, expected)))


def test_logsumexp_of_infinities_is_that_of_torch() -> None:
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([[-inf, -inf], [-inf, 0.0], [inf, 0.0], [nan, 0.0], [inf, -inf]])
    torch.testing.assert_close(logsumexp(x, 1), x.logsumexp(1), equal_nan=True)
