"""What every guide owes; a new one is in GUIDES and needs no test of its own."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal

from pyrovae import Pair, Run, build, make_pair
from pyrovae.distributions import closed_form_kl, concatenated, reparameterize
from pyrovae.estimators import rate_terms
from pyrovae.guides.guide import Guide
from pyrovae.lockstep import Lockstep
from pyrovae.streams import Streams

GUIDES = sorted(build.GUIDES)
EVENT = torch.Size([1, 4, 4])
#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27


@pytest.fixture(params=GUIDES)
def pair(request: pytest.FixtureRequest) -> Pair:
    return make_pair(Run(guide=request.param, depth=1, width=8, latent_size=3), EVENT)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, *EVENT, generator=torch.Generator().manual_seed(0))


def test_guide_without_a_posterior_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Unfinished", (Guide,), {})(torch.nn.Identity(), 2)


def test_full_rank_rate_has_no_closed_form_where_the_prior_is_not_normal() -> None:
    q = MultivariateNormal(torch.zeros(3), torch.eye(3))
    assert closed_form_kl(q, Independent(Laplace(torch.zeros(3), 1.0), 1)) is None
    assert closed_form_kl(q, Independent(Normal(torch.zeros(3), 1.0), 1)) is not None


def test_posterior_has_one_entry_per_image(pair: Pair, x: Tensor) -> None:
    q = pair.guide.posterior(x)
    assert (q.batch_shape, q.event_shape) == ((6,), (3,))
    shape = pair.check(x, beta=0.5).noise_shapes["z"]
    assert shape is not None
    parts = concatenated([pair.guide.posterior(part) for part in x.split(4)])
    z = q.sample()
    torch.testing.assert_close(parts.log_prob(z), q.log_prob(z))


def test_draws_from_noise_have_the_moments_of_the_posterior(pair: Pair, x: Tensor) -> None:
    with torch.no_grad():
        q = pair.guide.posterior(x[:1])
        noise = torch.randn(20_000, 1, 3, generator=torch.Generator().manual_seed(1))
        draws = reparameterize(q, noise)
        torch.manual_seed(0)
        expected = q.sample((20_000,))
    for power in (1, 2):
        error = ((draws**power).var(0) / 20_000 + (expected**power).var(0) / 20_000).sqrt()
        assert ((draws**power).mean(0) - (expected**power).mean(0)).abs().lt(TWO_SIDED * error).all()


def test_rate_in_closed_form_is_that_of_its_draws(pair: Pair, x: Tensor) -> None:
    with torch.no_grad():
        q, prior = pair.guide.posterior(x), pair.model.prior()
        exact = closed_form_kl(q, prior)
        assert exact is not None
        z = q.sample((20_000,))
        draws = (q.log_prob(z) - prior.log_prob(z)).double()
        assert (draws.mean(0) - exact).abs().lt(TWO_SIDED * draws.std(0) / 20_000**0.5).all()
        assert rate_terms(q, prior).rate.kind == "unbiased"


def test_guide_trains_in_lockstep_as_it_does_alone(pair: Pair, x: Tensor) -> None:
    lockstep = Lockstep([pair, pair], {"beta": torch.tensor([0.5, 2.0])})
    streams = Streams([0, 1], images=6, batch_size=3, noise_shapes=pair.check(x, beta=0.5).noise_shapes)
    images = (255 * x).to(torch.uint8)
    batch = (streams.noise(0), streams.index(0), images, streams.keys("draws", 0))
    lifted, _ = lockstep.gradients("lifted", batch)(batch)
    single, _ = lockstep.gradients("run by run", batch)(batch)
    for parameter, gradient in lifted.items():
        assert gradient.flatten(1).abs().amax(1).gt(0).all(), f"no gradient reaches {parameter}"
        torch.testing.assert_close(gradient, single[parameter], rtol=1e-4, atol=1e-5)
