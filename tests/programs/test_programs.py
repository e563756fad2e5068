import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyrovae import InputError, Pair, Run, make_pair, parts
from pyrovae.errors import UnsupportedError
from pyrovae.guides import MeanField
from pyrovae.programs.handlers import Noise

EVENT = torch.Size([1, 6, 6])


@pytest.fixture(autouse=True)
def _own_store() -> Iterator[None]:
    with pyro.get_param_store().scope():
        yield


@pytest.fixture
def pair() -> Pair:
    return make_pair(Run(depth=1, width=16, latent_size=3), EVENT)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(64, *EVENT, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_mean_field_elbo_is_distortion_plus_beta_rate(pair: Pair, x: torch.Tensor, beta: float) -> None:
    rate = kl_divergence(pair.guide.posterior(x), pair.model.prior()).sum()
    losses = [TraceMeanField_ELBO().loss(pair.model, pair.guide, x, beta=beta) for _ in range(2)]
    torch.manual_seed(1)
    loss = TraceMeanField_ELBO().loss(pair.model, pair.guide, x, beta=beta)
    torch.manual_seed(1)
    z = pair.guide.posterior(x).rsample()
    distortion = -pair.model.decode(z).log_prob(x).sum()
    assert losses[0] != losses[1]
    torch.testing.assert_close(torch.tensor(loss), distortion + beta * rate, rtol=1e-4, atol=0)


@pytest.fixture(params=parts.names("guide"))
def each_pair(request: pytest.FixtureRequest) -> Pair:
    """A pair for every guide, with the model of the same name if there is one."""
    model = request.param if request.param in parts.names("model") else "vae"
    return make_pair(Run(guide=request.param, model=model, depth=1, width=16, latent_size=3), EVENT)


def test_trace_elbo_agrees_with_the_pair_within_its_error(each_pair: Pair, x: torch.Tensor) -> None:
    pair = each_pair
    with torch.no_grad():
        draws = torch.tensor([Trace_ELBO().loss(pair.model, pair.guide, x, beta=0.5) for _ in range(300)])
        ours = torch.stack([pair(x, beta=0.5).loss.sum() for _ in range(300)])
    error = (draws.var() / 300 + ours.var() / 300).sqrt()
    assert abs(draws.mean() - ours.mean()) < 4.27 * error  # two-sided failure rate 2e-5


def test_rate_is_zero_if_the_guide_equals_the_prior(pair: Pair, x: torch.Tensor) -> None:
    with torch.no_grad():
        pair.guide.encoder[-1].weight.zero_()
        pair.guide.encoder[-1].bias.zero_()
    assert pair(x, beta=1.0).rate.abs().max() < 1e-6


def test_every_parameter_moves_under_svi(each_pair: Pair, x: torch.Tensor) -> None:
    pair = each_pair
    before = {name: value.clone() for name, value in pair.named_parameters()}
    SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x, beta=0.5)
    assert all(not torch.equal(before[name], value) for name, value in pair.named_parameters())


def test_every_parameter_moves_without_the_param_store(each_pair: Pair, x: torch.Tensor) -> None:
    pair = each_pair
    before = {name: value.clone() for name, value in pair.named_parameters()}
    elbo = Trace_ELBO()(pair.model, pair.guide)
    optimizer = torch.optim.Adam(elbo.parameters(), lr=1e-2)
    elbo(x, beta=0.5).backward()
    optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in pair.named_parameters())


def test_prior_predictive_draws_differ_from_the_data(each_pair: Pair, x: torch.Tensor) -> None:
    pair = each_pair
    draws = Predictive(pair.model, num_samples=7)(n=len(x))["x"]
    assert draws.shape == (7, *x.shape)
    assert not torch.equal(draws[0], draws[1])


def test_posterior_predictive_draws_follow_the_images(pair: Pair, x: torch.Tensor) -> None:
    with torch.no_grad():
        pair.guide.encoder[-1].bias[3:] = -20  # narrow: every draw is at μ(x)
    draws = Predictive(pair.model, guide=pair.guide, num_samples=2, return_sites=("z",))(x)["z"]
    expected = pair.guide.posterior(x).base_dist.loc.expand(2, -1, -1)
    torch.testing.assert_close(draws.reshape(expected.shape), expected, atol=1e-4, rtol=0)


def test_scale_in_only_one_program_is_refused(pair: Pair, x: torch.Tensor) -> None:
    pair.model.forward = lambda x, beta: type(pair.model).forward(pair.model, x, beta=1.0)
    with pytest.raises(InputError, match=r"expected one scale in model and guide, got 1\.0 and 0\.5"):
        pair.check(x, beta=0.5)


def test_rates_of_two_levels_follow_the_factorisation(x: torch.Tensor) -> None:
    """R1 = log q(z1|x) − log p(z1|z2) and R2 = log q(z2|z1) − log p(z2), at the drawn z."""
    pair = make_pair(Run(model="hierarchical", guide="hierarchical", depth=1, width=16, latent_size=3), EVENT)
    noise = {site: torch.randn(len(x), 3, generator=torch.Generator().manual_seed(2)) for site in ("z1", "z2")}

    def normal(features: torch.Tensor) -> dist.Distribution:
        loc, log_scale = features.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    q1 = normal(pair.guide.encoder(x))
    z1 = q1.base_dist.loc + q1.base_dist.scale * noise["z1"]
    q2 = normal(pair.guide.above(z1))
    z2 = q2.base_dist.loc + q2.base_dist.scale * noise["z2"]
    p1 = normal(pair.model.below(z2))
    terms = pair(x, noise, beta=0.5)
    torch.testing.assert_close(terms.rates["z1"], q1.log_prob(z1) - p1.log_prob(z1))
    torch.testing.assert_close(terms.rates["z2"], q2.log_prob(z2) - pair.model.prior().log_prob(z2))
    torch.testing.assert_close(terms.loss, terms.distortion + 0.5 * (terms.rates["z1"] + terms.rates["z2"]))
    torch.testing.assert_close(terms.distortion, -pair.model.decode(z1).log_prob(x))
    assert not pair.check(x, beta=0.5).closed_form


class Auxiliary(MeanField):
    """Sets z to an auxiliary draw u, as Pyro's automatic guides do."""

    def forward(self, x: torch.Tensor, beta: float | torch.Tensor = 1.0) -> torch.Tensor:
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            u = pyro.sample("u", self.posterior(x), infer={"is_auxiliary": True})
            return pyro.sample("z", dist.Delta(u, event_dim=1))


def test_auxiliary_sites_contribute_to_the_rate(x: torch.Tensor) -> None:
    plain = make_pair(Run(depth=1, width=16, latent_size=3), EVENT)
    pair = Pair(plain.model, Auxiliary(plain.guide.encoder, 3))
    assert not pair.check(x, beta=0.5).closed_form
    with pytest.raises(UnsupportedError, match=r"expected a guide without auxiliary sites, got \['u'\]"):
        pair.latent(x)
    with torch.no_grad():
        many = x[:1].expand(20_000, *EVENT)
        draws, expected = pair(many, beta=0.5), plain(many, beta=0.5)
        error = (draws.loss.double().var() + expected.loss.double().var()).sqrt() / 20_000**0.5
        assert (draws.loss.mean() - expected.loss.mean()).abs() < 4.27 * error
        assert (draws.rate.mean() - expected.rate.mean()).abs() < 4.27 * draws.rate.std() / 20_000**0.5


class Coins(MeanField):
    """Samples without a gradient."""

    def posterior(self, x: torch.Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=self.encoder(x)[..., :3]).to_event(1)


def test_guides_without_reparameterized_draws_are_refused(pair: Pair, x: torch.Tensor) -> None:
    pair.model.prior.forward = lambda: dist.Bernoulli(torch.full((3,), 0.5)).to_event(1)
    with pytest.raises(InputError, match=r"site 'z': expected a reparameterized guide.* got Bernoulli"):
        Pair(pair.model, Coins(pair.guide.encoder, 3)).check(x, beta=0.5)


def test_model_and_guide_with_different_sites_are_refused(x: torch.Tensor) -> None:
    pair = make_pair(Run(model="hierarchical", depth=1, width=16, latent_size=3), EVENT)
    with pytest.raises(InputError, match=r"expected the latent sites of the model, \['z1', 'z2'\], got \['z'\]"):
        pair.check(x, beta=0.5)


@pytest.mark.parametrize(
    ("likelihood", "grey", "kind"),
    [
        ("bernoulli", True, "cross-entropy"),
        ("bernoulli", False, "negative log-probability"),
        ("gaussian", True, "negative log-density"),
    ],
)
def test_kind_of_distortion_follows_from_the_support(likelihood: str, grey: bool, kind: str, x: torch.Tensor) -> None:
    pair = make_pair(Run(likelihood=likelihood, depth=1, width=16, latent_size=3), EVENT)
    assert pair.check(x if grey else x.round(), beta=0.5).distortion_kind == kind


def test_pair_leaves_the_param_store_empty(pair: Pair, x: torch.Tensor) -> None:
    pair(x, beta=1.0).loss.sum().backward()
    assert len(pyro.get_param_store()) == 0


def test_injected_noise_does_not_change_replayed_z(pair: Pair, x: torch.Tensor) -> None:
    noise = {"z": torch.randn(len(x), 3, generator=torch.Generator().manual_seed(2))}
    guide, model = pair.traces(x, noise, beta=1.0)
    q = pair.guide.posterior(x)
    torch.testing.assert_close(model.nodes["z"]["value"], q.base_dist.loc + q.base_dist.scale * noise["z"])
    assert model.nodes["z"]["value"] is guide.nodes["z"]["value"]
    with Noise({"z": torch.zeros_like(noise["z"])}):  # wrongly around the model
        replayed = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(x)
    assert replayed.nodes["z"]["value"] is guide.nodes["z"]["value"]


def test_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "run(" not in code]
    names: dict[str, Any] = {}
    exec("".join(blocks), names)
    assert names["loss"] > 0
    assert (tmp_path / "guide.nc").exists()
    assert all(parameter.grad is not None for parameter in names["elbo"].parameters())
    assert names["information"].value <= math.log(128)
    assert abs(names["rate"].value - names["information"].value - names["gap"].value) < 1e-9
