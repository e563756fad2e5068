"""The flow matching prior: its equations, its fit to codes of known density, and the error of its solver."""

import math

import pytest
import torch
import xarray as xr
from seeds import any_seed
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from pyrovae import InputError, Pair, Study, run
from pyrovae.data.linear import covariance
from pyrovae.estimators import prior_fit
from pyrovae.models.priors import FlowMatching
from pyrovae.runner.validation import check_study
from pyrovae.store.results import Results

#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27


def perturbed(size: int, **settings: int) -> FlowMatching:
    torch.manual_seed(0)
    prior = FlowMatching(size, hidden=16, **settings)
    prior.start_at(torch.randn(100, size) * torch.tensor([0.5, 3.0, 1.0])[:size] + 1)
    return prior.double()


def test_divergence_is_the_trace_of_the_jacobian() -> None:
    prior = perturbed(3)
    z, time = torch.randn(5, 3).double(), torch.rand(5, 1).double()
    _, divergence = prior.velocity(z, time)
    for row in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda each, at=time[row]: prior.velocity(each, at)[0], z[row])
        torch.testing.assert_close(divergence[row], jacobian.trace())


def test_density_is_that_of_the_map_from_noise() -> None:
    """log p(z(1)) = log N(z(0)) − log |det ∂z(1)/∂z(0)|, with the Jacobian of the solver itself."""
    prior = perturbed(3, solver_steps=64)
    p = prior()

    def mapped(noise: Tensor) -> Tensor:
        return prior.affine(noise)(p._solved(noise, 64, start=0.0)[0])

    for noise in torch.randn(3, 3).double():
        log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(mapped, noise))[1]
        expected = Normal(0.0, 1.0).log_prob(noise).sum() - log_det
        torch.testing.assert_close(p.log_prob(mapped(noise)), expected, rtol=1e-6, atol=1e-6)


def moons(number: int, generator: torch.Generator) -> Independent:
    """Encodings on two half circles, each a normal distribution with the scale 0.2."""
    angle = math.pi * torch.rand(number, generator=generator)
    side = torch.arange(number) % 2 * 2 - 1
    centres = torch.stack([side * (angle.cos() - 0.5), side * (angle.sin() - 0.25)], -1)
    return Independent(Normal(centres, torch.full_like(centres, 0.2)), 1)


@pytest.mark.long
@any_seed
def test_two_moons_are_fitted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_fit, "STEPS", 1000)
    draws = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    q, prior = moons(2000, draws), FlowMatching(2)
    prior_fit.fit_prior(prior, q, seed)
    z = q.sample((2,)).flatten(0, 1).double()
    log_q = Independent(Normal(q.mean.double(), 0.2), 1).log_prob(z.unsqueeze(1)).logsumexp(1) - math.log(2000)
    with torch.no_grad():
        gap = log_q - prior().log_prob(z)
    normal = MultivariateNormal(z.mean(0), z.T.cov())
    assert -TWO_SIDED * gap.std() / len(z) ** 0.5 < gap.mean() < 0.25 * (log_q - normal.log_prob(z)).mean()


def test_error_of_the_solver_falls_with_its_steps() -> None:
    """Runge-Kutta of fourth order: half the step, a sixteenth of the error."""
    torch.manual_seed(0)
    z = torch.randn(200, 3).double()
    errors = []
    for steps in (16, 32, 64):
        prior = perturbed(3, solver_steps=steps)
        with torch.no_grad():
            prior.second.weight.mul_(4)
            errors.append(prior.solver_error(z).mean().item())
    assert errors[0] > 1e-7
    assert 8 < errors[0] / errors[1] < 32
    assert 8 < errors[1] / errors[2] < 32


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The linear study, where q(z) is normal up to the number of images, with two evaluations of the prior."""
    study = Study.load(
        "linear",
        **{"seed": 0, "beta": [0.05, 1], "steps": 600, "learning_rate": 0.02, "latent_size": 2},
        **{"train_images": 1024, "test_images": 1024, "measure.images": 1000, "measure.outer": 64},
        **{"measure.likelihood_images": 4, "measure.particles": 10},
    )
    results = run(study, tmp_path_factory.mktemp("linear") / "study", compile="never", quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior_fit, "STEPS", 300)
        for steps in (1, 16):
            results.swap_prior({"name": "flow_matching", "solver_steps": steps}, quiet=True)
    return results


def information_of_the_population(pair: Pair) -> float:
    """I = ½ log |W C Wᵀ + S| / |S| of the linear guide q(z|x) = N(W x + b, S) and x ~ N(0, C)."""
    with torch.no_grad():
        q = pair.guide.posterior(torch.cat([torch.zeros(1, 6), torch.eye(6)]))
    noise, weights = q.covariance_matrix[0].double(), (q.mean[1:] - q.mean[0]).T.double()
    return float(torch.logdet(weights @ covariance() @ weights.T + noise) - torch.logdet(noise)) / 2


@pytest.mark.long
@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_rate_of_the_linear_study_becomes_the_information(beta: float, linear: Results) -> None:
    information = information_of_the_population(linear.pair(beta=beta, seed=0))
    swapped = linear.evaluations["prior=flow_matching(solver_steps=16)"]
    own, fitted = (
        each.tree["rate_distortion"].to_dataset().sel(beta=beta, seed=0, split="test") for each in (linear, swapped)
    )
    tolerance = TWO_SIDED * float(fitted["rate_se"])
    assert abs(fitted["rate"] - information) < tolerance + 0.02
    if beta < 1:
        assert own["rate"] - information > tolerance + 0.1


@pytest.mark.long
def test_error_of_the_solver_is_part_of_the_standard_errors(linear: Results) -> None:
    rough, fine = (linear.evaluations[f"prior=flow_matching(solver_steps={steps})"].tree for steps in (1, 16))
    for name in ("rate_distortion/rate_se", "rate_distortion/elbo_se", "information/prior_gap_se"):
        assert (rough[name] > fine[name] + 1e-4).all(), name
    xr.testing.assert_equal(rough["rate_distortion/distortion_se"], fine["rate_distortion/distortion_se"])
    xr.testing.assert_equal(rough["information/mutual_information_se"], fine["information/mutual_information_se"])


@pytest.mark.long
def test_finding_compares_with_training_at_beta_1(linear: Results) -> None:
    swapped = linear.evaluations["prior=flow_matching(solver_steps=16)"]
    (found,) = (each for each in swapped.findings() if "fitted afterwards" in each.text)
    before, after = (
        -float(each.tree["rate_distortion/elbo"].sel(beta=beta, seed=0, split="test"))
        for each, beta in ((linear, 1), (swapped, 0.05))
    )
    assert found.contrast.effect.estimate == pytest.approx(before - after, rel=1e-5)
    assert not [each for each in linear.findings() if "fitted afterwards" in each.text]


@pytest.mark.long
def test_finding_compares_the_images_of_both_evaluations(linear: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the swap was measured on more images than the study, so was the prior of the pair."""
    monkeypatch.setattr(prior_fit, "STEPS", 2)
    swapped = linear.swap_prior("diagonal", quiet=True, images=1020)
    before = linear.evaluations["images=1020"].images()
    xr.testing.assert_allclose(swapped.images()["joint"], before["distortion"] + before["rate"])
    (found,) = (each for each in swapped.findings() if "fitted afterwards" in each.text)
    assert math.isfinite(found.contrast.effect.estimate)


def test_it_is_only_fitted_after_training() -> None:
    with pytest.raises(InputError, match="pyrovae evaluate DIR --prior flow_matching") as refused:
        check_study(Study(name="mine", prior=["standard_normal", "flow_matching"]))
    assert "\n" not in str(refused.value)
