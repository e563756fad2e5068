"""The contract of guides: every guide in `pyrovae.parts` is tested here and needs no further test."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from seeds import any_seed
from torch import Tensor
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal

from pyrovae import Pair, Run, make_pair, parts
from pyrovae.estimators import active_units, mutual_information, rate_terms
from pyrovae.guides.guide import Guide
from pyrovae.programs.distributions import closed_form_kl, concatenated, reparameterize, unconstrained

GUIDES = list(parts.names("guide"))
EVENT = torch.Size([1, 4, 4])
#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27


@pytest.fixture
def seed() -> int:
    """Of the tests that have no other."""
    return 0


@pytest.fixture(params=GUIDES)
def pair(request: pytest.FixtureRequest, seed: int) -> Pair:
    # A guide with the name of a model belongs to that model.
    model = request.param if request.param in parts.names("model") else "vae"
    return make_pair(Run(guide=request.param, model=model, depth=1, width=8, latent_size=3, seed=seed), EVENT)


@pytest.fixture
def x(seed: int) -> Tensor:
    return torch.rand(6, *EVENT, generator=torch.Generator().manual_seed(seed))


def test_guide_without_distribution_is_abstract() -> None:
    with pytest.raises(TypeError, match=r"abstract method '?distribution"):
        type("Unfinished", (Guide,), {"features": staticmethod(lambda latent_size: 2)})(torch.nn.Identity(), 2)


def test_closed_form_kl_needs_a_normal_prior() -> None:
    q = MultivariateNormal(torch.zeros(3), torch.eye(3))
    assert closed_form_kl(q, Independent(Laplace(torch.zeros(3), 1.0), 1)) is None
    assert closed_form_kl(q, Independent(Normal(torch.zeros(3), 1.0), 1)) is not None


def test_codes_without_width_have_a_finite_rate_and_gradient(pair: Pair, x: Tensor) -> None:
    """As encoders make them that no rate pulls back, at β ≈ 0."""
    with torch.no_grad():
        pair.guide.encoder[-1].bias[3:6] -= 100
    terms = pair(x, beta=1e-6)
    assert terms.rate.isfinite().all()
    terms.loss.sum().backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in pair.parameters())


def test_posterior_has_one_entry_per_image(pair: Pair, x: Tensor) -> None:
    q = pair.guide.posterior(x)
    assert (q.batch_shape, q.event_shape) == ((6,), (3,))
    assert None not in pair.check(x, beta=0.5).noise_shapes.values()
    parts = concatenated([pair.guide.posterior(part) for part in x.split(4)])
    z = q.sample()
    torch.testing.assert_close(parts.log_prob(z), q.log_prob(z))


def test_posterior_is_a_function_of_unconstrained_parameters(pair: Pair, x: Tensor) -> None:
    with torch.no_grad():
        q = pair.guide.posterior(x)
        values, distribution = unconstrained(q)
        z = q.sample()
        torch.testing.assert_close(distribution(*values).log_prob(z), q.log_prob(z))
        for number in range(len(values)):
            moved = [value + 0.1 * (place == number) for place, value in enumerate(values)]
            other = distribution(*moved)
            assert other.rsample((2,)).shape == (2, 6, 3)
            assert not torch.allclose(other.log_prob(z), q.log_prob(z))


@any_seed
def test_reparameterized_draws_follow_the_posterior(seed: int, pair: Pair, x: Tensor) -> None:
    with torch.no_grad():
        q = pair.guide.posterior(x[:1])
        noise = torch.randn(20_000, 1, 3, generator=torch.Generator().manual_seed(seed + 1000))
        draws = reparameterize(q, noise)
        torch.manual_seed(seed)
        expected = q.sample((20_000,))
    low, centre, high = expected.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0)
    for function in (torch.sin, torch.cos):
        ours, theirs = (function((z - centre) / (high - low)) for z in (draws, expected))
        error = ((ours.var(0) + theirs.var(0)) / 20_000).sqrt()
        assert (ours.mean(0) - theirs.mean(0)).abs().lt(TWO_SIDED * error).all()


@any_seed
def test_rate_is_the_expected_log_ratio(seed: int, pair: Pair, x: Tensor) -> None:
    """The rate, in closed form or not, has the mean of Σ log q − log p over the latent sites of independent draws."""
    with torch.no_grad():
        torch.manual_seed(seed)
        for image in x[:2]:
            many = image.expand(20_000, *EVENT)
            rate = pair(many, beta=0.5).rate.double()
            guide, model = pair.traces(many, beta=0.5)
            names = [name for name, node in guide.nodes.items() if node["type"] == "sample" and name != "data"]
            ratio = [guide.nodes[name]["fn"].log_prob(guide.nodes[name]["value"]) for name in names]
            ratio += [-model.nodes[name]["fn"].log_prob(model.nodes[name]["value"]) for name in names]
            draws = torch.stack(ratio).sum(0).double()
            error = ((rate.var() + draws.var()) / 20_000).sqrt()
            assert (rate.mean() - draws.mean()).abs() < TWO_SIDED * error
            assert pair.check(x, beta=0.5).closed_form == bool(rate.std() < 1e-5)
    if len(names) == 1:
        assert pair.check(x, beta=0.5).closed_form == (closed_form_kl(*pair.latent(x, beta=0.5)) is not None)


@any_seed
def test_reparameterized_draws_follow_the_density(seed: int, pair: Pair, x: Tensor) -> None:
    """E_q[p(z) / q(z)] = 1 for a normalised p that is narrower than q."""
    with torch.no_grad():
        q = pair.guide.posterior(x[:1].expand(20_000, *EVENT))
        noise = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(seed + 2000))
        z = reparameterize(q, noise)
        p = Independent(Normal(z.mean(0) + 0.3 * z.std(0), 0.6 * z.std(0)), 1)
        weights = (p.log_prob(z) - q.log_prob(z)).double().exp()
    assert abs(weights.mean() - 1) < TWO_SIDED * weights.std() / 20_000**0.5


@any_seed
def test_rate_is_information_plus_gap_for_every_guide(seed: int, pair: Pair, x: Tensor) -> None:
    """R = I + G, I ≤ log N, and I = 0 for identical encodings."""
    q, prior = pair.guide.posterior(x), make_pair(Run(latent_size=3, width=8), EVENT).model.prior()
    rate, information, gap = rate_terms(q, prior, samples=50, generator=torch.Generator().manual_seed(seed))
    assert abs(rate.value - information.value - gap.value) < 1e-9
    assert information.value <= math.log(6)
    identical = pair.guide.posterior(x[:1].expand(400, *EVENT))
    assert abs(mutual_information(identical).value) < 1e-9
    assert active_units(identical, generator=torch.Generator().manual_seed(seed)).value == 0


def test_active_units_of_flows_count_varying_means() -> None:
    """A flow has no mean in closed form; here, two of three dimensions vary with the image."""
    moved = torch.linspace(-3, 3, 3000)[:, None] * torch.tensor([1.0, 0.0, -1.0])

    class Moved:
        def __init__(self, by: Tensor) -> None:
            self.by, self.noise_shape = by, by.shape
            self.batch_shape, self.event_shape = by.shape[:1], by.shape[1:]

        def from_noise(self, noise: Tensor) -> Tensor:
            return noise + self.by

        def mapped(self, function: Callable[..., Tensor], *others: "Moved") -> "Moved":
            return Moved(function(self.by))

    found = active_units(Moved(moved), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert (found.value, found.kind) == (2, "approximate")


def test_guide_has_the_same_gradients_in_lockstep(pair: Pair, assert_trains_in_lockstep: Any) -> None:
    assert_trains_in_lockstep([pair, pair], EVENT)
