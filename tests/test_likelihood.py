"""The importance-weighted bound, on linear pairs whose log p(x) is a closed form."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyrovae import Run, make_pair
from pyrovae.estimators import log_likelihood

EVENT = torch.Size([1, 2, 3])
#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27


@pytest.mark.parametrize("model", ["vae", "gap"])
def test_bound_is_a_lower_one_rises_with_k_and_comes_to_the_truth(model: str) -> None:
    pair = make_pair(Run(model=model, network="linear", likelihood="gaussian", latent_size=2), EVENT)
    x = torch.randn(20, *EVENT, generator=torch.Generator().manual_seed(0))
    pair.refresh(torch.rand(50, *EVENT))
    decoder = pair.model.decoder[0]
    with torch.no_grad():
        for parameter in pair.guide.parameters():
            parameter.zero_()  # q(z|x) = N(0, I)
        covariance = decoder.weight @ decoder.weight.T + torch.eye(6)
        truth = MultivariateNormal(decoder.bias, covariance).log_prob(x.flatten(1)).double()
    torch.manual_seed(0)
    means, errors = [], []
    for particles, times in ((1, 400), (8, 100), (5000, 5)):
        bounds = log_likelihood(pair.log_weights, x.repeat(times, 1, 1, 1), particles).unflatten(0, (times, 20))
        means.append(bounds.mean())
        errors.append(bounds.mean(1).std() / times**0.5)
    assert means[0] < truth.mean() - TWO_SIDED * errors[0]
    assert means[0] + TWO_SIDED * errors[0] < means[1] - TWO_SIDED * errors[1]
    assert means[1] < means[2]
    assert abs(means[2] - truth.mean()) < TWO_SIDED * errors[2] + 0.01


def test_pieces_of_any_size_give_the_same_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(Run(depth=1, width=8, latent_size=2), EVENT)
    x = torch.rand(7, *EVENT)
    bounds = []
    for numbers in (2**20, 6 * 40, 1):
        monkeypatch.setattr("pyrovae.estimators.likelihood.NUMBERS", numbers)
        torch.manual_seed(0)
        bounds.append(log_likelihood(lambda part: part.flatten(1).sum(1), x, particles=20))
        assert log_likelihood(pair.log_weights, x, particles=20).isfinite().all()
    torch.testing.assert_close(bounds[0], bounds[1])
    torch.testing.assert_close(bounds[0], bounds[2])
    torch.testing.assert_close(bounds[0], x.double().flatten(1).sum(1), rtol=1e-5, atol=1e-5)
