"""The exemplar prior: its density, its bandwidth, and whose codes it learns from."""

import math
from pathlib import Path

import pytest
import torch
from scipy import optimize
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pyrovae import InputError, Study, run
from pyrovae.models.priors import Exemplar
from pyrovae.models.priors.bank import BankMixture
from pyrovae.runner.remeasure import reevaluate

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))


def distribution(features: Tensor) -> Independent:
    """Codes at the features, with a scale that does not matter to exemplars."""
    return Independent(Normal(features, torch.full_like(features, 0.01)), 1)


def exemplars(components: int = 12, log_scale: float = -0.5) -> tuple[Exemplar, nn.Linear]:
    """The prior of codes 2x, and their encoder."""
    encoder = nn.Linear(2, 2, bias=False)
    nn.init.eye_(encoder.weight).data.mul_(2)
    prior = Exemplar(2, encoder.forward, distribution, components=components)
    prior.log_scale.data.fill_(log_scale)
    prior.refresh(lambda rows: X[rows], len(X))
    return prior, encoder


def density(z: Tensor, codes: Tensor, scale: float) -> Tensor:
    """The kernel density estimate, written out."""
    distance = (z[:, None] - codes).square().sum(-1)
    kernels = torch.exp(-distance / (2 * scale**2)) / (2 * math.pi * scale**2)
    return kernels.mean(1).log()


def test_density_is_the_mean_of_kernels_around_the_other_codes() -> None:
    prior, _ = exemplars()
    z = torch.randn(3, 2)
    torch.testing.assert_close(prior().log_prob(z), density(z, 2 * X, math.exp(-0.5)))
    for number in (0, 5):
        others = torch.cat([X[:number], X[number + 1 :]])
        found = prior.eval().of(X[number : number + 1], torch.tensor([number])).log_prob(z[:1])
        torch.testing.assert_close(found, density(z[:1], 2 * others, math.exp(-0.5)))


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_density_of_narrow_encodings_is_exact_in_float32(scale: float) -> None:
    """A product in float32 would lose 0.5 nats at σ = 1e-3."""
    features = 3 * torch.randn(300, 20, generator=torch.Generator().manual_seed(0))

    def narrow(features: Tensor) -> Independent:
        return Independent(Normal(features, torch.full_like(features, scale)), 1)

    z = features[:50] + scale * torch.randn(50, 20, generator=torch.Generator().manual_seed(1))
    expected = narrow(features.double()).log_prob(z.double()[:, None]).logsumexp(1) - math.log(300)
    torch.testing.assert_close(BankMixture(narrow, features).log_prob(z).double(), expected, rtol=1e-6, atol=1e-5)


def test_training_step_has_some_exemplars_and_never_the_image_itself() -> None:
    prior, _ = exemplars(components=4)
    prior.refresh(lambda rows: X[rows], len(X), torch.Generator().manual_seed(3))
    rows = prior.rows.tolist()
    assert len(set(rows)) == 4
    z = torch.randn(2, 2)
    inside, outside = rows[0], next(n for n in range(12) if n not in rows)
    found = prior.train().of(X[[inside, outside]], torch.tensor([inside, outside])).log_prob(z)
    expected = [density(z[:1], 2 * X[rows[1:]], math.exp(-0.5)), density(z[1:], 2 * X[rows], math.exp(-0.5))]
    torch.testing.assert_close(found, torch.cat(expected))


def test_gradients_reach_the_codes_of_exemplars_while_training_only() -> None:
    prior, encoder = exemplars()
    z, index = torch.randn(12, 2), torch.arange(12)
    (gradient,) = torch.autograd.grad(prior.train().of(X, index).log_prob(z).sum(), encoder.weight)

    def total(weight: Tensor) -> Tensor:
        codes = X @ weight.T
        others = [torch.cat([codes[:n], codes[n + 1 :]]) for n in range(12)]
        return torch.stack([density(z[n : n + 1], others[n], math.exp(-0.5)) for n in range(12)]).sum()

    weight = encoder.weight.detach().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(total(weight), weight)[0])
    measured = prior.eval().of(X, index).log_prob(z).sum()
    assert torch.autograd.grad(measured, [encoder.weight, prior.log_scale], allow_unused=True)[0] is None


def test_scale_becomes_the_bandwidth_with_the_largest_leave_one_out_likelihood() -> None:
    prior, _ = exemplars(log_scale=1.0)
    codes, adam = 2 * X, torch.optim.Adam([prior.log_scale], lr=0.05)

    def loss(log_scale: float) -> float:
        others = [torch.cat([codes[:n], codes[n + 1 :]]) for n in range(12)]
        return -sum(float(density(codes[n : n + 1], others[n], math.exp(log_scale))) for n in range(12))

    for _ in range(400):
        adam.zero_grad()
        (-prior.eval().of(X, torch.arange(12)).log_prob(codes).mean()).backward(inputs=[prior.log_scale])
        adam.step()
    best = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-6})
    assert abs(prior.log_scale.item() - best.x) < 1e-3
    assert loss(best.x - 0.1) > loss(best.x) < loss(best.x + 0.1)


def test_exemplar_prior_is_not_fitted_afterwards_and_others_are(tmp_path: Path) -> None:
    """Also where the model itself keeps encodings."""
    settings = {"steps": 2, "width": 4, "depth": 1, "train_images": 64, "test_images": 32, "batch_size": 16}
    measure = {"images": 32, "outer": 16, "likelihood_images": 8, "particles": 30, "reconstructions": 8, "probe": 8}
    for model in ("vae", "gap"):
        run(Study(name="mine", model=model, **settings, measure=measure), tmp_path / model, quiet=True)
    with pytest.raises(InputError, match="prior: expected one that can be fitted to frozen encodings, got 'exemplar'"):
        reevaluate(tmp_path / "vae", prior="exemplar")
    assert reevaluate(tmp_path / "gap", prior="diagonal")[1].name == "prior=diagonal"
