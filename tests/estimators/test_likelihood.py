"""Importance-weighted bounds and their diagnostics, on pairs whose log p(x) has a closed form."""

import math

import pyro.distributions as dist
import pytest
import torch
from seeds import any_seed
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae import Pair, Run, make_pair
from pyrovae.estimators import ImportanceWeighted, log_likelihood, pareto_k_threshold

EVENT = torch.Size([1, 2, 3])
#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27


def linear(**settings: str) -> tuple[Pair, Tensor, Tensor]:
    """A linear pair, images, and their log p(x)."""
    pair = make_pair(Run(network="linear", likelihood="gaussian", latent_size=2, **settings), EVENT)  # type: ignore[arg-type]
    x = torch.randn(20, *EVENT, generator=torch.Generator().manual_seed(0))
    pair.refresh(torch.rand(50, *EVENT))
    decoder = pair.model.decoder[0]
    with torch.no_grad():
        covariance = decoder.weight @ decoder.weight.T + torch.eye(6)
        truth = MultivariateNormal(decoder.bias, covariance).log_prob(x.flatten(1)).double()
    return pair, x, truth


@any_seed
@pytest.mark.parametrize("model", ["vae", "gap"])
def test_iwae_bound_increases_with_k_to_log_likelihood(model: str, seed: int) -> None:
    pair, x, truth = linear(model=model)
    with torch.no_grad():
        for parameter in pair.guide.parameters():
            parameter.zero_()  # q(z|x) = N(0, I)
    torch.manual_seed(seed)
    means, errors = [], []
    for particles, times in ((2, 400), (8, 100), (5000, 5)):
        found = log_likelihood(pair.log_weights, x.repeat(times, 1, 1, 1), particles)
        bounds = found.bound.unflatten(0, (times, 20))
        means.append(bounds.mean())
        errors.append((bounds.var(0).mean() / bounds.numel()).sqrt())
        assert found.ess.min() >= 1
        assert found.ess.max() <= particles * 1.001
    assert means[0] + TWO_SIDED * errors[0] < means[1] - TWO_SIDED * errors[1]
    assert means[1] + TWO_SIDED * errors[1] < means[2] - TWO_SIDED * errors[2]
    # The bias of the log of a mean is half its relative variance.
    assert abs(means[2] - truth.mean()) < TWO_SIDED * errors[2] + (1 / found.ess).mean() / 2


def test_weights_equal_likelihood_when_guide_is_posterior() -> None:
    pair, x, truth = linear(guide="full_rank")
    W, b = pair.model.decoder[0].weight.detach(), pair.model.decoder[0].bias.detach()
    S = torch.linalg.inv(torch.eye(2) + W.T @ W)

    def posterior(x: Tensor) -> dist.Distribution:
        return dist.MultivariateNormal((x.flatten(1) - b) @ W @ S, S)

    pair.guide.posterior = posterior
    log_w = pair.log_weights(x, 100)
    assert log_w.shape == (100, 20)
    torch.testing.assert_close(log_w.double(), truth.expand(100, 20), rtol=1e-5, atol=1e-4)
    found = log_likelihood(pair.log_weights, x, 100)
    assert found.ess.min() > 99
    assert found.estimate.kind == "lower bound"


@any_seed
@pytest.mark.parametrize("model", ["vae", "hierarchical"])
def test_mean_log_weight_is_the_elbo(model: str, seed: int) -> None:
    pair = make_pair(
        Run(model=model, guide="hierarchical" if model == "hierarchical" else "mean_field", width=8), EVENT
    )
    x = torch.rand(5, *EVENT)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.mul_(0.3)  # otherwise, a few draws dominate the mean
        log_w = pair.log_weights(x, 20_000)
        terms = pair(x.repeat(20_000, 1, 1, 1))
    elbo = (-terms.distortion - terms.rate).unflatten(0, (20_000, 5))
    error = ((log_w.var(0) + elbo.var(0)) / 20_000).sqrt()
    assert ((log_w.mean(0) - elbo.mean(0)).abs() < TWO_SIDED * error).all()
    found = log_likelihood(pair.log_weights, x, 20_000)
    assert ((found.elbo - elbo.mean(0)).abs() < TWO_SIDED * error).all()
    assert (found.bound >= found.elbo).all()


def test_guide_runs_once_per_image() -> None:
    pair, x, _ = linear()
    seen = []
    encode = pair.guide.posterior
    pair.guide.posterior = lambda x: seen.append(len(x)) or encode(x)  # type: ignore[func-returns-value]
    pair.log_weights(x, 50)
    assert seen == [20]


def test_bound_is_independent_of_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, x, _ = linear()
    found = []
    for numbers in (2**20, 64 * 40, 1):
        monkeypatch.setattr("pyrovae.estimators.likelihood.CHUNK_ELEMENTS", {"cpu": numbers})
        log_w = log_likelihood(lambda part, draws: part.flatten(1).sum(1).expand(draws, -1), x, particles=30)
        found.append(log_w.bound)
        assert log_likelihood(pair.log_weights, x, particles=30).bound.isfinite().all()
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[0], x.double().flatten(1).sum(1), rtol=1e-5, atol=1e-5)


def test_high_pareto_k_is_the_share_above_the_threshold() -> None:
    k = torch.tensor([0.6, 0.68, 0.72, 2.0])
    assert ImportanceWeighted(k, k, k, k, particles=1000).high_pareto_k == 0.75
    assert ImportanceWeighted(k, k, k, k, particles=10**6).high_pareto_k == 0.5
    k[0] = torch.nan
    assert math.isnan(ImportanceWeighted(k, k, k, k, particles=1000).high_pareto_k)


def test_estimate_notes_the_share_of_high_pareto_k() -> None:
    heavy = torch.arange(20) < 7

    def log_weights(x: Tensor, draws: int) -> Tensor:
        return torch.where(heavy, 3.0, 0.01) * torch.empty(draws, 20).exponential_()

    torch.manual_seed(0)
    found = log_likelihood(log_weights, torch.zeros(20, *EVENT), 1000)
    assert found.high_pareto_k == 0.35
    assert found.estimate.notes == ("k̂ above 0.67 for 35% of the images",)
    assert pareto_k_threshold(1000) == pytest.approx(2 / 3)
    heavy[:] = False
    assert log_likelihood(log_weights, torch.zeros(20, *EVENT), 1000).estimate.notes == ()
    assert log_likelihood(log_weights, torch.zeros(20, *EVENT), 24).estimate.notes == ("k̂ unknown",)
