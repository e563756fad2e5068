"""The infinite-capacity decoder against brute force, and verdicts on memorisation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from helpers import InMemory
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from pyrovae import Pair, Run, Study, build, make_pair, parts, run
from pyrovae.analysis import figures
from pyrovae.analysis.findings import findings
from pyrovae.analysis.findings.verdicts import Verdict
from pyrovae.analysis.report import tables
from pyrovae.build import make_data
from pyrovae.data import CohortData, Dataset
from pyrovae.estimators import memorising_decoder, mixing_share
from pyrovae.measures.declared import shipped
from pyrovae.measures.evaluate import Measurements
from pyrovae.measures.memorisation import smoothed_mean
from pyrovae.models import VAE
from pyrovae.runner.measuring import measured_runs
from pyrovae.study import Cohort, Measure
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.streams import Streams

N, EVENT = 300, torch.Size([1, 2, 3])
LIKELIHOOD = build.make_likelihood(Run(), EVENT)


@pytest.fixture
def q() -> Distribution:
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(N, 2, generator=generator)
    return Independent(Normal(loc, 0.2 + 0.1 * torch.rand(N, 2, generator=generator)), 1)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (N, *EVENT), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def z() -> Tensor:
    return 1.5 * torch.randn(700, 2, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("leave_out", [False, True])
def test_memorising_decoder_is_the_posterior_mean_image(
    q: Distribution, images: Tensor, z: Tensor, leave_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = torch.arange(700) % N if leave_out else None
    loc, scale = q.mean.double(), q.stddev.double()
    log_q = (-((z.double().unsqueeze(1) - loc) ** 2) / (2 * scale**2) - scale.log()).sum(2)
    if own is not None:
        log_q[torch.arange(700), own] = -torch.inf
    w = (log_q - log_q.logsumexp(1, keepdim=True)).exp()
    expected = (w @ (images.double() / 255).flatten(1)).unflatten(1, EVENT)
    entropy = -torch.where(w > 0, w * w.log(), 0).sum(1)
    for codes, columns in ((512, 512), (7, 11)):
        monkeypatch.setattr("pyrovae.estimators.marginal.CHUNK_ROWS", codes)
        monkeypatch.setattr("pyrovae.estimators.marginal.CHUNK_ELEMENTS", {"cpu": codes * columns})
        found = memorising_decoder(z, q, images, own)
        torch.testing.assert_close(found.image, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.perplexity, entropy.exp(), rtol=1e-6, atol=1e-6)


def test_memorising_decoder_minimises_training_distortion(q: Distribution, images: Tensor) -> None:
    """Over p(n|z), at every z: any other mean image has a higher expected cross-entropy."""
    z = torch.zeros(1, 2)
    best = memorising_decoder(z, q, images).image
    w = (q.log_prob(z.unsqueeze(1)).squeeze(0).double()).softmax(0)
    x = images.double() / 255

    def expected_distortion(mean: Tensor) -> Tensor:
        return (w * LIKELIHOOD.distortion_at(x, mean.expand_as(x))).sum()

    for seed in range(20):
        other = torch.rand(1, *EVENT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for share in (0.01, 0.5):
            assert expected_distortion(best.lerp(other, share)) > expected_distortion(best)


def test_smoothed_mean_keeps_distortion_of_unseen_pixels_finite(q: Distribution) -> None:
    images = torch.zeros(N, *EVENT)
    images[: N // 2, 0, 0, 0] = 1
    x, lit = torch.zeros(1, *EVENT), torch.zeros(1, *EVENT)
    lit[0, 0, 1, 2] = 1
    found = memorising_decoder(torch.zeros(1, 2), q, images).image
    assert LIKELIHOOD.distortion_at(x.double(), found).isfinite()
    assert LIKELIHOOD.distortion_at(lit.double(), found).isinf()
    mean = smoothed_mean(Dataset(images, images[:2]))
    assert mean.min().item() == pytest.approx(0.5 / (N + 1))
    assert mean[0, 0, 0].item() == pytest.approx((N // 2 + 0.5) / (N + 1))
    assert LIKELIHOOD.distortion_at(lit.double(), found.lerp(mean, 1e-9)).isfinite()


@pytest.mark.parametrize("share", [1e-6, 1e-3, 0.2, 0.9])
def test_mixing_share_recovers_the_true_share(share: float) -> None:
    """A pixel of mean 1/2 under x̄ and 0 under x̂, lit with probability share / 2: there that share is best."""
    lit = share / 2

    def distortion(mean: Tensor) -> Tensor:
        return -(lit * mean.log() + (1 - lit) * (1 - mean).log()).sum(1)

    found = mixing_share(distortion, torch.zeros(1, 1, dtype=torch.float64), torch.full((1,), 0.5))
    assert found == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "poisson"])
def test_distortion_at_a_mean_equals_negative_log_probability(name: str) -> None:
    likelihood = build.make_likelihood(Run(likelihood=name), EVENT)
    x = torch.rand(20, *EVENT, generator=torch.Generator().manual_seed(0))
    x = (3 * x).round() if likelihood.support.is_discrete else x
    p = likelihood(torch.randn(20, likelihood.features, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(likelihood.distortion_at(x, p.mean), -p.log_prob(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(parts.names("likelihood")) - {"bernoulli", "gaussian", "poisson"}))
def test_distortion_at_a_mean_is_nan_for_other_likelihoods(name: str) -> None:
    x = torch.rand(20, *EVENT)
    assert build.make_likelihood(Run(likelihood=name), EVENT).distortion_at(x, x).isnan().all()


def test_memorisation_of_a_study_is_consistent(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"depth": 1, "width": 8, "train_images": 256, "test_images": 100, "batch_size": 32}
    measured = {"measure.reconstructions": 64, "measure.images": 64, "measure.particles": 30}
    study = Study.load("quick", steps=20, seed=0, beta=[0.01, 4], latent_size=2, **settings, **measured)
    results = run(study, tmp_path / "study", quiet=True)
    found = results.tree["memorisation"].to_dataset().isel(seed=0)
    images = results.images(seed=0)
    for name in ("memorising_distortion", "reconstruction_distance", "memorising_distance"):
        np.testing.assert_allclose(found[name], images[name].mean("image").transpose(*found[name].dims))
        assert images[name].notnull().sum("image").values.tolist() == [[64, 64]] * 2
    assert (found["perplexity"] >= 1).all()
    assert (found["perplexity"] <= 256).all()
    assert (found["perplexity"].sel(beta=4) > found["perplexity"].sel(beta=0.01)).all()
    assert ((found["mixing_share"] > 0) & (found["mixing_share"] <= 1)).all()
    assert (found["infinite_share"].sel(split="train") == 0).all()  # every image is in its own mixture
    assert (found["memorising_distortion"].sel(split="train") >= 20).all()
    shown, data = results.pictures("reconstructions", seed=0), make_data(study.runs()[0])
    np.testing.assert_array_equal(shown["original"].sel(beta=4), data.test[:8])
    flat = (data.train.float() / 255).flatten(1)
    reconstructed = torch.tensor(shown["reconstruction"].sel(beta=4).values / 255).float().flatten(1)
    rows = torch.cdist(reconstructed, flat).argmin(1)
    assert (torch.tensor(shown["nearest"].sel(beta=4).values) == data.train[rows]).flatten(1).all(1).sum() >= 7


class Doubled(VAE):
    """A model that observes every image twice."""

    def forward(self, x: Tensor, beta: float | Tensor = 1.0) -> None:  # type: ignore[override]
        with pyro.plate("data", len(x)):
            with pyro.poutine.scale(scale=beta):
                z = pyro.sample("z", self.prior())
            for name in ("x", "again"):
                pyro.sample(name, self.decode(z), obs=x)


def measured(pair: Pair, images: Tensor) -> Measurements:
    lockstep = Lockstep([pair], {"beta": torch.ones(1)})
    streams = Streams([0], images=200, batch_size=8, noise_shapes={"z": torch.Size([2])})
    settings = Measure(
        images=20, likelihood_images=20, reconstructions=20, particles=30, gap_images=4, gap_temperatures=2
    )
    data = CohortData(Dataset(images[:200], images[200:]))
    trained: Any = SimpleNamespace(lockstep=lockstep, streams=streams, data=data, cohort=Cohort((Run(),)))
    return next(measured_runs(trained, settings, shipped()))


def test_unsupported_measure_is_reported_and_affects_no_other(images: Tensor) -> None:
    made = make_pair(Run(depth=1, width=8, latent_size=2), EVENT)
    pair = Pair(Doubled(made.model.prior, made.model.decoder, made.model.likelihood), made.guide)
    found = measured(pair, images)
    reason = "expected one latent and one observed site, got ['z'] and ['x', 'again']"
    sites = f"memorisation, generalization_gap, fixed_decoder_curve: not measured, {reason}"
    assert found.note == f"{sites}; population: not measured, it needs validation_images"
    assert "memorisation" not in found.numbers
    assert all(np.isfinite(value).all() for value in found.numbers["information"].values())
    assert np.isfinite(found.numbers["likelihood"]["log_likelihood"]).all()


def test_memorisation_without_known_mean_measures_the_memorising_decoder(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrovae.measures.memorisation.mean_of", lambda p: None)
    found = measured(make_pair(Run(depth=1, width=8, latent_size=2), EVENT), images).numbers["memorisation"]
    assert np.isnan(found["reconstruction_distance"]).all()
    assert np.isfinite(found["memorising_distance"]).all()
    assert np.isfinite(found["memorising_distortion"]).all()


def study_of(effect: float, reliable: bool = True) -> InMemory:
    """Reconstructions that are closer to training images by ``effect`` at three layers, and at β = 1."""
    rng = np.random.default_rng(0)
    dims = ("split", "image", "beta", "seed", "depth")
    coords = {"split": ["train", "test"], "beta": [0.1, 1.0], "depth": [1, 3]}
    distance = 5 + 0.1 * rng.normal(size=(2, 200, 2, 3, 2))
    distance[..., 1] -= effect
    distance[:, :, 1] -= effect
    images = {"distortion": (dims, rng.normal(size=distance.shape)), "reconstruction_distance": (dims, distance)}
    codes = {name: (dims[2:], np.zeros(distance.shape[2:])) for name in ("mutual_information", "prior_gap")}
    ones = ("log_n", "prior_gap_se", "mutual_information_se")
    codes |= {name: (dims[2:], np.ones(distance.shape[2:])) for name in ones}
    bounds = {"log_likelihood": (dims[2:], -100 + rng.normal(size=distance.shape[2:]))}
    share = np.zeros(distance.shape[2:])
    share[0, 1] = 0 if reliable else 0.3
    bounds |= {"high_pareto_k": (dims[2:], share), "effective_draws": (dims[2:], 10 + share)}
    for name in ("elbo_same_images", "annealed_log_likelihood", "annealed_gain", "acceptance", "sandwich_gap"):
        bounds[name] = (dims[2:], np.full(share.shape, np.nan))
    bounds |= {f"{name}_se": (dims[2:], np.ones(share.shape)) for name in list(bounds)}
    inner = {name: coords[name] for name in ("beta", "depth")}
    status = np.full(share.shape, "done", object)
    groups = {
        "information": xr.Dataset(codes, inner),
        "likelihood": xr.Dataset(bounds, inner),
        "runs": xr.Dataset(dict.fromkeys(("status", "distortion_kind"), (dims[2:], status)), inner),
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs["study"] = Study(name="mine", beta=[0.1, 1], seed=[0, 1, 2], depth=[1, 3]).to_yaml()
    return InMemory(tree, xr.Dataset(images, coords))


def about_memorisation(study: InMemory) -> list[Verdict]:
    return [verdict for verdict in findings(study) if "closer to training images" in verdict.text]


@pytest.mark.parametrize(
    ("effect", "outcome"), [(0.2, "supported"), (-0.2, "contradicted"), (0.0, "no meaningful difference")]
)
def test_verdict_on_memorisation_follows_the_effect(effect: float, outcome: str) -> None:
    found = about_memorisation(study_of(effect))
    assert [verdict.outcome for verdict in found] == [outcome] * 2
    assert [verdict.contrast.where for verdict in found] == ["", "depth 3"]
    assert all(abs(verdict.contrast.effect.estimate - effect) < 0.05 for verdict in found)
    *lines, _ = tables.verdicts(found)
    assert all(" pixels (95% over images and 3 seeds, for this training set)" in line for line in lines)


def test_unmeasured_reconstructions_have_no_verdict() -> None:
    study = study_of(0.2)
    study.images()["reconstruction_distance"][:] = np.nan
    assert about_memorisation(study) == []


def printed(tree: xr.DataTree) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(tables.measured(tree)["likelihood"])
    return capture.get().splitlines()


def test_loose_bound_is_marked_in_table_and_figure() -> None:
    assert not any("†" in line for line in printed(study_of(0.0).tree))
    study = study_of(0.0, reliable=False)
    tree = study.tree  # at β = 0.1, in one of three seeds
    assert "k̂ is high for more than 10% of the images" in " ".join(" ".join(printed(tree)).split())
    rows = [line for line in printed(tree) if "†" in line and "│" in line]
    assert [row.split("│")[2].strip() for row in rows] == ["0.1", "0.1"]
    tree["likelihood/high_pareto_k"][:] = np.nan  # too few draws to know
    assert sum("†" in line and "│" in line for line in printed(tree)) == 4
    ax = Figure().subplots()
    figures.log_likelihood(study_of(0.0, reliable=False), ax)
    lines = {str(line.get_label()): line for line in ax.lines}
    bounds = tree["likelihood/log_likelihood"].mean("seed").sel(depth=3).values
    np.testing.assert_allclose(lines["depth 3"].get_ydata(), [np.nan, bounds[1]])
    assert "k̂ high: may be loose" in lines
    whole = next(line for line in ax.lines if line.get_linestyle() == ":" and len(line.get_xdata()) == 2)
    assert to_rgb(whole.get_markerfacecolor()) == to_rgb("white")
    ax = Figure().subplots()
    figures.log_likelihood(study_of(0.0), ax)
    assert "k̂ high: may be loose" not in [line.get_label() for line in ax.lines]


def test_annealed_bounds_are_shown_with_the_others() -> None:
    study = study_of(0.0)
    tree = study.tree
    tree["likelihood/annealed_log_likelihood"][:] = -90
    assert any("by annealing" in line for line in printed(tree))
    ax = Figure().subplots()
    figures.log_likelihood(study, ax)
    (line,) = [line for line in ax.lines if line.get_label() == "depth 3 annealed"]
    assert (np.asarray(line.get_ydata()) == -90).all()


def test_reconstructions_are_drawn_by_kind_and_depth() -> None:
    rng = np.random.default_rng(0)
    dims = ["beta", "depth", "seed", "sample", "channel", "row", "column"]
    names = ("original", "reconstruction", "memorised", "nearest")
    pictures = {name: (dims, rng.integers(0, 256, (4, 2, 2, 3, 1, 4, 4), dtype=np.uint8)) for name in names}
    data = xr.Dataset(pictures, {"beta": [0.01, 0.1, 1.0, 4.0], "depth": [1, 3], "seed": [0, 1]})
    figure = Figure()
    runs = xr.Dataset(coords=data.drop_dims(dims[3:]).coords)
    rate = xr.DataArray(0.0, {"split": ["train", "test"], **runs.coords}, ["split", *dims[:3]])
    groups = {"runs": runs, "rate_distortion": xr.Dataset({"rate": rate})}
    study = InMemory(xr.DataTree.from_dict(groups), pictures={"reconstructions": data})
    figures.reconstructions(study, figure.subplots())
    panels = figure.axes[1:]
    assert len(panels) == 3 * 7
    assert [ax.get_title() for ax in panels[:3]] == ["β = 0.01", "β = 1", "β = 4"]
    assert [ax.get_ylabel() for ax in panels[::3]][4:] == [
        "learned, depth 3",
        "memorising, depth 3",
        "nearest training, depth 3",
    ]
    drawn = panels[3 * 5 + 1].images[0].get_array()  # memorising, depth 3, β = 1
    expected = data["memorised"].sel(beta=1, depth=3, seed=0).isel(channel=0).transpose("row", "sample", "column")
    np.testing.assert_array_equal(drawn, expected.values.reshape(4, 12))
