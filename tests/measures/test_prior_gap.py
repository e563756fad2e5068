"""Priors that know the training images, and the weight of the prior gap."""

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from seeds import any_seed
from torch import Tensor, nn
from torch.distributions import Normal

from pyrovae import InputError, Pair, Run, Study, make_pair, parts
from pyrovae.build import assemble
from pyrovae.estimators import mutual_information
from pyrovae.guides import MeanField
from pyrovae.programs.distributions import log_ratio
from pyrovae.runner.validation import check_study

EVENT = torch.Size([1, 4, 4])
N = 6
#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27


@pytest.fixture(autouse=True)
def _own_store() -> Iterator[None]:
    with pyro.get_param_store().scope():
        yield


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (N, *EVENT), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pair_of(images: Tensor, apart: float = 1.0, **settings: Any) -> Pair:
    """A pair whose encodings lie so far apart, with a full fresh bank."""
    run = Run(**{"depth": 1, "width": 8, "latent_size": 2, "components": 3} | settings)
    pair = assemble(run, EVENT, images=images)
    with torch.no_grad():
        pair.guide.encoder[-1].weight[: run.latent_size] *= 10 * apart
    pair.refresh(images)
    return pair


def test_rate_under_a_fresh_bank_is_the_mutual_information(images: Tensor) -> None:
    for apart in (0.1, 1.0, 30.0):
        pair = pair_of(images, apart, prior="aggregate")
        x, index = images.repeat(2000, 1, 1, 1) / 255, torch.arange(N).repeat(2000)
        torch.manual_seed(0)
        with torch.no_grad():
            rate = pair(x, beta=1.0, index=index).rate.double()
            information = mutual_information(pair.guide.posterior(images / 255), samples=2000)
        assert rate.max() <= math.log(N) + 1e-4
        error = (rate.var() / len(rate) + information.se**2).sqrt()
        assert abs(rate.mean() - information.value) < TWO_SIDED * error + 1e-6


@pytest.mark.parametrize("prior", ["aggregate", "aggregate_leave_one_out", "aggregate_subsampled"])
def test_weight_of_a_training_images_own_encoding_is_as_declared(prior: str, images: Tensor) -> None:
    pair = pair_of(images, prior=prior)
    pair.refresh(images, torch.Generator().manual_seed(3))
    rows = pair.model.prior.rows.tolist()
    assert len(rows) == (3 if prior == "aggregate_subsampled" else N)
    with torch.no_grad():
        z = torch.randn(N, 2)
        log_prob = pair.model.prior.of(images / 255, torch.arange(N)).log_prob(z)
        q = pair.guide.posterior(images / 255)
        for n in range(N):
            density = q.log_prob(z[n]).exp()
            others = torch.stack([density[m] for m in rows if m != n]).mean()
            weight = 0.0 if prior == "aggregate_leave_one_out" else 1 / N
            torch.testing.assert_close(log_prob[n].exp(), weight * density[n] + (1 - weight) * others)
        pair.eval()
        torch.testing.assert_close(pair.model.prior().log_prob(z), (q.log_prob(z[:, None]).logsumexp(1) - math.log(N)))
        if prior == "aggregate_subsampled":  # outside of training, every image counts
            whole = pair.model.prior.of(images / 255, torch.arange(N)).log_prob(z)
            torch.testing.assert_close(whole, pair.model.prior().log_prob(z))


def test_draws_of_a_training_images_own_prior_have_its_density(images: Tensor) -> None:
    pair = pair_of(images, 30.0, prior="aggregate")
    with torch.no_grad():
        own = pair.model.prior.of(images / 255, torch.arange(N))
        torch.manual_seed(0)
        z = own.sample((4000,))  # type: ignore[arg-type]
        nearest = pair.guide.posterior(images / 255).log_prob(z.unsqueeze(-2)).argmax(-1)
    share = torch.stack([(nearest == m).double().mean(0) for m in range(N)])
    assert (share - 1 / N).abs().max() < TWO_SIDED * (1 / N * (1 - 1 / N) / 4000) ** 0.5


def test_training_refreshes_only_a_subsample(images: Tensor) -> None:
    pair = pair_of(images, prior="aggregate_subsampled")
    before = pair.model.prior.bank.clone()
    with torch.no_grad():
        pair.guide.encoder[-1].bias += 1
    pair.refresh(images, torch.Generator().manual_seed(0))
    moved = (pair.model.prior.bank != before).any(1)
    assert moved.nonzero().flatten().tolist() == sorted(pair.model.prior.rows.tolist())
    assert moved.sum() == 3
    pair.refresh(images)
    assert (pair.model.prior.bank != before).any(1).all()


@any_seed
def test_exact_bank_has_the_gradient_of_the_information(seed: int, images: Tensor) -> None:
    """E_q(z)[∇ log q(z)] = 0: against the gradient of I itself, by quadrature, for codes at −1, 0 and 1.5 on a line."""
    three, points = images[:3], torch.linspace(-20, 20, 8001, dtype=torch.float64)
    pair = assemble(Run(network="linear", prior="aggregate", latent_size=1, seed=seed), EVENT, images=three)
    encoder = pair.guide.encoder
    with torch.no_grad():
        encoder[-1].weight.zero_()
        encoder[-1].weight[0] = torch.linalg.lstsq((three / 255).flatten(1), torch.tensor([-1.0, 0.0, 1.5])).solution
        encoder[-1].bias.zero_()
    pair.refresh(three)

    loc, log_scale = encoder(three / 255).double().chunk(2, dim=-1)
    log_q = Normal(loc, log_scale.exp()).log_prob(points)
    log_marginal = log_q.logsumexp(0) - math.log(3)
    information = ((log_q.exp() * (log_q - log_marginal)).sum(1) * (points[1] - points[0])).mean()
    (truth,) = torch.autograd.grad(information, encoder[-1].bias)
    assert truth.abs().max() > 0.1

    torch.manual_seed(seed)
    draws = []
    for _ in range(200):
        rate = pair(three.repeat(500, 1, 1, 1) / 255, beta=1.0, index=torch.arange(3).repeat(500)).rate.mean()
        draws.append(torch.autograd.grad(rate, encoder[-1].bias)[0].double())
    estimates = torch.stack(draws)
    error = estimates.std(0) / 200**0.5
    assert error.max() < 0.1 * truth.abs().max()
    assert ((estimates.mean(0) - truth).abs() < TWO_SIDED * error).all()


@pytest.mark.parametrize("prior", ["mixture", "vamp", "flow"])
def test_gap_with_the_weight_of_beta_is_the_beta_vae(prior: str, images: Tensor) -> None:
    gap = pair_of(images, model="gap", prior=prior)
    plain = pair_of(images, prior=prior)
    plain.load_state_dict({name: value for name, value in gap.state_dict().items() if "marginal" not in name})
    noise = {"z": torch.randn(N, 2)}
    ours = gap(images / 255, noise, beta=0.3, gamma=0.3, index=torch.arange(N))
    theirs = plain(images / 255, noise, beta=0.3)
    for name in ("loss", "distortion", "rate"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-4)
    left_out = gap(images / 255, noise, beta=0.3, index=torch.arange(N))
    torch.testing.assert_close(left_out.loss, ours.loss)
    ours.loss.sum().backward()
    theirs.loss.sum().backward()
    for (_, one), (_, other) in zip(gap.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_gap_without_weight_is_the_aggregate_prior(images: Tensor) -> None:
    gap = pair_of(images, model="gap")
    plain = pair_of(images, prior="aggregate")
    noise = {"z": torch.randn(N, 2)}
    ours = gap(images / 255, noise, beta=0.3, gamma=0.0, index=torch.arange(N))
    theirs = plain(images / 255, noise, beta=0.3, index=torch.arange(N))
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.rates["z"], theirs.rates["z"])
    # What is reported as R still holds the gap, unweighted.
    z = gap.traces(images / 255, noise, beta=0.3, gamma=0.0, index=torch.arange(N))[0].nodes["z"]["value"]
    whole = log_ratio(gap.guide.posterior(images / 255), gap.model.prior(), z)
    torch.testing.assert_close(ours.rate, whole, rtol=1e-4, atol=1e-4)


def test_loss_weighs_information_by_beta_and_gap_by_gamma(images: Tensor) -> None:
    terms = pair_of(images, model="gap")(images / 255, beta=0.3, gamma=0.1, index=torch.arange(N))
    assert set(terms.rates) == {"z", "gap"}
    expected = terms.distortion + 0.3 * terms.rates["z"] + 0.1 * terms.rates["gap"]
    torch.testing.assert_close(terms.loss, expected)


@pytest.mark.parametrize("settings", [{"model": "gap"}, *({"prior": name} for name in sorted(parts.names("prior")))])
def test_pair_works_with_pyros_own_inference(settings: dict[str, str], images: Tensor) -> None:
    pair, index = pair_of(images, **settings), torch.arange(N)
    values = {"beta": 0.3, "index": index} | ({"gamma": 0.1} if settings.get("model") == "gap" else {})
    with torch.no_grad():
        draws = torch.tensor([Trace_ELBO().loss(pair.model, pair.guide, images / 255, **values) for _ in range(100)])
        ours = torch.stack([pair(images / 255, **values).loss.sum() for _ in range(100)])
    error = (draws.var() / 100 + ours.var() / 100).sqrt()
    assert abs(draws.mean() - ours.mean()) < TWO_SIDED * error
    before = {name: value.clone() for name, value in pair.named_parameters()}
    SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(images / 255, **values)
    assert all(not torch.equal(before[name], value) for name, value in pair.named_parameters())
    pyro.clear_param_store()
    pair.zero_grad()
    Trace_ELBO()(pair.model, pair.guide)(images / 255, **values).backward()
    assert all(value.grad is not None for value in pair.parameters())


def test_empty_bank_asks_for_refresh() -> None:
    pair = make_pair(Run(prior="aggregate", depth=1, width=8), EVENT)
    with pytest.raises(RuntimeError, match=r"call refresh\(\) on training images first"):
        pair.model.prior()


def test_pseudo_inputs_start_at_images_and_stay_in_range(images: Tensor) -> None:
    prior = pair_of(images, prior="vamp").model.prior
    distance = (prior.pseudo_inputs.unsqueeze(1) - images / 255).abs().flatten(2).amax(2)
    assert (distance.amin(1) < 0.02).all()
    assert len(set(distance.argmin(1).tolist())) == 3
    random = pair_of(images, prior="vamp_random").model.prior
    assert (random.pseudo_inputs.unsqueeze(1) - images / 255).abs().flatten(2).amax(2).min() > 0.1
    for each in (prior, random):
        with torch.no_grad():
            each.free.copy_(1e3 * torch.randn(each.free.shape))
        assert each.pseudo_inputs.min() >= images.min() / 255 - 1e-6
        assert each.pseudo_inputs.max() <= images.max() / 255 + 1e-6
    wide = 5 * torch.randn(20, *EVENT)
    pair = make_pair(Run(prior="vamp", components=4, depth=1, width=8), EVENT, images=wide)
    distance = (pair.model.prior.pseudo_inputs.unsqueeze(1) - wide).abs().flatten(2).amax(2)
    assert (distance.amin(1) < 0.02 * (wide.max() - wide.min())).all()


class OwnPosterior(MeanField):
    def posterior(self, x: Tensor) -> Any:
        return Normal(*self.encoder(x).chunk(2, -1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "hierarchical", "guide": "hierarchical", "prior": "vamp"}, "has for its z1 but not for z2"),
        ({"model": "hierarchical", "guide": "hierarchical", "prior": "aggregate"}, "has for its z1 but not for z2"),
        ({"model": "gap", "beta": 0.1, "gamma": 0.2}, "expected at most β = 0.1, got 0.2"),
        ({"gamma": 0.1}, "the model 'vae' does not take it, got 0.1"),
        ({"model": "gap", "prior": "aggregate"}, "expected one whose gap can have a weight in the model 'gap'"),
        ({"model": "gap", "beta": 0.1, "gamma": 0.2, "refresh": 1, "pixels": "dynamic"}, "expected at most β = 0.1"),
    ],
)
def test_conflicting_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_study(Study(name="mine", **settings))


def test_gamma_above_beta_needs_a_refresh_at_each_step() -> None:
    check_study(Study(name="mine", model="gap", beta=0.1, gamma=0.2, refresh=1))
    check_study(Study(name="mine", model="gap", beta=0.1, refresh=9))


def test_more_pseudo_inputs_than_images_are_refused(images: Tensor) -> None:
    with pytest.raises(InputError, match="components: expected at most the 6 training images, got 7"):
        make_pair(Run(prior="vamp", components=7, depth=1, width=8), EVENT, images=images)


def test_bank_needs_the_standard_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parts.SHIPPED["guide"], "own", f"{__name__}:OwnPosterior")
    with pytest.raises(InputError, match="'own' overrides `posterior`"):
        make_pair(Run(prior="aggregate", guide="own", depth=1, width=8), EVENT)
    make_pair(Run(prior="mixture", guide="own", depth=1, width=8), EVENT)
    for settings in ({"prior": "aggregate"}, {"model": "gap"}):
        with pytest.raises(InputError, match="expects a guide that learns nothing but its encoder"):
            make_pair(Run(guide="flow", depth=1, width=8, **settings), EVENT)


def test_open_program_receives_the_values_of_its_partner() -> None:
    """As guides do that are made of their model."""
    plain = make_pair(Run(depth=1, width=8, latent_size=2), EVENT)
    seen = {}

    class Open(nn.Module):
        def forward(self, x: Tensor, **values: Any) -> Tensor:
            seen.update(values)
            return plain.guide(x, **values)

    Pair(plain.model, Open())(torch.rand(3, *EVENT), beta=0.5, gamma=0.1, index=torch.arange(3))
    assert set(seen) == {"beta", "index"}


def test_saturated_rate_has_no_gradient(images: Tensor) -> None:
    """Codes as narrow as these would otherwise be driven by noise of size 1/σ."""
    pair = pair_of(images, 30.0, prior="aggregate")
    with torch.no_grad():
        pair.guide.encoder[-1].bias[2:] = -5
    pair.refresh(images)
    rate = pair(images / 255, beta=1.0, index=torch.arange(N)).rate
    torch.testing.assert_close(rate, torch.full((N,), math.log(N)))
    rate.sum().backward()
    assert pair.guide.encoder[-1].bias.grad.abs().max() < 1e-3
