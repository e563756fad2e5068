from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from pyrovae import InputError, Pair, Run, Study, make_pair, run
from pyrovae.analysis.diagnosis.chains import ChainSettings
from pyrovae.analysis.diagnosis.diagnose import Diagnosis, caveats, diagnose, latents
from pyrovae.analysis.diagnosis.exact_posterior import exact_posterior
from pyrovae.analysis.diagnosis.predictive_checks import (
    image_statistics,
    predictive_statistics,
    vector_statistics,
)
from pyrovae.analysis.figures import diagnosis
from pyrovae.analysis.inference_data import inference_data
from pyrovae.errors import UnsupportedError
from pyrovae.estimators import Annealing, LinearGaussian, Optimisation
from pyrovae.runner.diagnose import diagnose_run

EVENT = torch.Size([1, 2, 3])
#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27
SMALL = {"annealing": Annealing(20, 8), "optimisation": Optimisation(steps=20)}


@pytest.fixture
def pair() -> Pair:
    return make_pair(Run(network="linear", likelihood="gaussian", noise_scale=0.5, latent_size=2), EVENT)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, *EVENT, generator=torch.Generator().manual_seed(0))


def closed_form(pair: Pair, x: Tensor) -> MultivariateNormal:
    """p(z|x) of a linear pair."""
    with torch.no_grad():
        offset = pair.model.decode(torch.zeros(2)).mean.flatten()
        weight = (pair.model.decode(torch.eye(2)).mean.flatten(1) - offset).T
    return LinearGaussian(torch.eye(6), weight, 0.5).posterior(x.flatten(1) - offset)


@pytest.mark.parametrize(("model", "beta"), [("vae", 0.01), pytest.param("gap", 2.0, marks=pytest.mark.long)])
def test_exact_posterior_of_linear_pair_is_the_closed_form(model: str, beta: float, x: Tensor) -> None:
    parts = {"network": "linear", "likelihood": "gaussian", "noise_scale": 0.5, "latent_size": 2, "model": model}
    pair = make_pair(Run(**parts), EVENT)
    pair.refresh(torch.randn(8, *EVENT))
    truth = closed_form(pair, x)
    data = exact_posterior(pair, x, nuts=ChainSettings(2, 250, 100), images=[3, 8], beta=beta, gamma=0.3)
    z = latents(data)
    assert z.dims == ("chain", "draw", "image", "latent")
    assert z["image"].values.tolist() == [3, 8]
    assert (z.azstats.rhat() < 1.05).all()
    assert data["sample_stats"]["diverging"].sum() == 0
    error = z.std(["chain", "draw"]) / z.azstats.ess(method="mean") ** 0.5
    assert (abs(z.mean(["chain", "draw"]) - truth.mean.numpy()) < TWO_SIDED * error).all()
    square = (z - z.mean(["chain", "draw"])) ** 2
    error = square.std(["chain", "draw"]) / square.azstats.ess(method="mean") ** 0.5
    variance = truth.covariance_matrix.diagonal(dim1=-2, dim2=-1).numpy()
    assert (abs(square.mean(["chain", "draw"]) - variance) < TWO_SIDED * error).all()
    correlation = np.corrcoef(z.sel(image=3).values.reshape(-1, 2).T)[0, 1]
    covariance = truth.covariance_matrix[0]
    expected = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()
    assert correlation == pytest.approx(expected.item(), abs=0.2)


class Positive(PyroModule):
    """z ~ Gamma(2, 1) and x ~ Poisson(z), so that p(z|x) = Gamma(2 + x, 2)."""

    def forward(self, x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("rows", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("intensity", dist.Gamma(2.0, 1.0))
            pyro.sample("count", dist.Poisson(z), obs=x)


class PositiveGuide(PyroModule):
    def forward(self, x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("rows", len(x)), poutine.scale(scale=beta):
            pyro.sample("intensity", dist.LogNormal((1 + x).log() - 0.7, 0.5))


@pytest.mark.long
def test_posterior_of_a_constrained_site_is_exact() -> None:
    counts = torch.tensor([0.0, 6.0])
    pair = Pair(Positive("positive"), PositiveGuide("guide"))
    found = diagnose(pair, counts, nuts=ChainSettings(2, 400, 150), **SMALL)
    z = latents(found.exact)
    assert z["latent"].values.tolist() == ["intensity[0]"]
    assert (z > 0).all()
    error = z.std(["chain", "draw"]) / z.azstats.ess(method="mean") ** 0.5
    mean = z.mean(["chain", "draw"]).isel(latent=0)
    assert (abs(mean - (2 + counts.numpy()) / 2) < TWO_SIDED * error.isel(latent=0)).all()
    assert found.summary["amortisation"].isnull().all()
    assert any("the inference gap is not measured" in note and "LogNormal" in note for note in found.notes)
    assert diagnosis.inference_gap(found) is None


class Folded(PyroModule):
    """x ~ N(|z|, 0.1²), so that p(z|x) has two modes."""

    def forward(self, x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.abs(), 0.1).to_event(1), obs=x)


class OneSided(PyroModule):
    def __init__(self) -> None:
        super().__init__("one_sided")
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", dist.Normal(x, self.scale).to_event(1))


@pytest.mark.long
def test_missed_mode_raises_rhat() -> None:
    pair, x = Pair(Folded("folded"), OneSided()), torch.tensor([[1.5], [0.8]])
    found = diagnose(pair, x, nuts=ChainSettings(6, 60, 60), images=["far", "near"], **SMALL)
    assert (found.summary["rhat"] > 1.2).all()
    assert (latents(found.exact).min(["chain", "draw"]) < 0).all()
    assert (latents(found.guide).min(["chain", "draw"]) > 0).all()
    assert found.notes[0].startswith("unreliable exact posterior for image far, near: R̂ above 1.05")


@pytest.mark.parametrize(
    ("change", "unreliable"),
    [
        ({}, None),
        ({"rhat": 1.06}, "b"),
        ({"rhat": np.nan}, "b"),
        ({"ess": 99.0}, "b"),
        ({"diverging": 1}, "b"),
        ({"approximation": -0.5}, "b"),
    ],
)
def test_one_bad_latent_makes_its_image_unreliable(change: dict[str, float], unreliable: str | None) -> None:
    coords = {"image": ["a", "b"], "latent": ["z[0]", "z[1]"]}
    summary = xr.Dataset(
        {
            "rhat": (list(coords), np.full((2, 2), 1.05)),
            "ess": (list(coords), np.full((2, 2), 100.0)),
            "diverging": ("image", np.zeros(2)),
            "approximation": ("image", [0.5, -0.3]),
            "approximation_se": ("image", [0.1, 0.1]),
        },
        coords,
    )
    for name, value in change.items():
        summary[name][(1, 0)[: summary[name].ndim]] = value
    lines = list(caveats(summary))
    assert lines == [] if unreliable is None else f"for image {unreliable}: " in lines[0]


class Scalar(PyroModule):
    """z ~ N(0, 1), x ~ N(z, 1), so that p(z|x) = N(x / 2, 1 / 2); with dropout in training mode."""

    def __init__(self, factor: float = 0.0, scale: float = 1.0) -> None:
        super().__init__("scalar")
        self.factor, self.scale, self.dropout = factor, scale, nn.Dropout(0.5)

    def forward(self, x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("latent", dist.Normal(0.0, 1.0))
            pyro.factor("more", self.factor * z)
            with poutine.scale(scale=self.scale):
                pyro.sample("obs", dist.Normal(self.dropout(z), 1.0), obs=x)


class ScalarGuide(PyroModule):
    def forward(self, x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            pyro.sample("latent", dist.Normal(x / 2, 0.5**0.5))


def test_diagnosis_runs_in_evaluation_mode_and_restores_the_mode() -> None:
    pair = Pair(Scalar(), ScalarGuide("guide"))
    pair.model.train()
    pair.guide.eval()
    found = diagnose(pair, torch.tensor([-1.0, 2.0]), nuts=ChainSettings(2, 200, 100), **SMALL)
    assert pair.model.dropout.training
    assert not pair.guide.training
    error = 1 / found.summary["ess"] ** 0.5
    assert (abs(found.summary["shift"]) < TWO_SIDED * (error + 1 / 400**0.5)).all()
    assert found.summary["amortisation"].notnull().all()
    assert (found.summary["pareto_k"] < 0.5).all()


@pytest.mark.parametrize("weights", [{"factor": 1.0}, {"scale": 0.5}])
def test_model_with_factor_or_scale_is_rejected(weights: dict[str, float]) -> None:
    with pytest.raises(UnsupportedError, match="expected a model without a factor"):
        exact_posterior(Pair(Scalar(**weights), ScalarGuide("guide")), torch.tensor([1.0]))


@pytest.mark.long
def test_diagnosis_measures_shift_scale_and_gap_of_a_wrong_guide(pair: Pair, x: Tensor) -> None:
    work = {"annealing": Annealing(100, 50), "optimisation": Optimisation(steps=400)}
    truth = closed_form(pair, x)

    class Guide(PyroModule):
        def forward(self, x: Tensor, beta: float = 1.0) -> None:
            p = closed_form(pair, x)
            with pyro.plate("data", len(x)), poutine.scale(scale=beta):
                loc, std = p.mean.float(), p.stddev.float()
                pyro.sample("z", dist.Normal(loc + std, 0.5 * std).to_event(1))

    found = diagnose(Pair(pair.model, Guide("given")), x, nuts=ChainSettings(2, 400, 150), beta=0.1, **work)
    summary = found.summary
    error = 1 / summary["ess"] ** 0.5
    assert (abs(summary["shift"] - 1) < TWO_SIDED * (error + 0.5 / 800**0.5)).all()
    assert (abs(summary["scale"] - 0.5) < TWO_SIDED * 0.5 * error).all()
    assert not found.notes
    q = Independent(Normal(truth.mean + truth.stddev, 0.5 * truth.stddev), 1)
    gap = torch.distributions.kl_divergence(MultivariateNormal(*_moments(q)), MultivariateNormal(*_moments(truth)))
    total = summary["approximation"] + summary["amortisation"]
    error = (summary["approximation_se"] ** 2 + summary["amortisation_se"] ** 2) ** 0.5
    assert (abs(total - gap.numpy()) < TWO_SIDED * error + 0.01).all()
    assert (summary["pareto_k"] > 0.5).all()


def _moments(q: torch.distributions.Distribution) -> tuple[Tensor, Tensor]:
    covariance = q.covariance_matrix if isinstance(q, MultivariateNormal) else torch.diag_embed(q.variance)
    return q.mean.double(), covariance.double()


def test_image_statistics_match_hand_counts() -> None:
    x = np.zeros((3, 3, 4, 5))
    x[0, :, 1, 2] = x[0, :, 3, 2] = 1.0  # two white pixels, one above the other
    x[1, 2, 0, 4] = 0.5  # a blue pixel in a corner, and a negative one, which is not ink
    x[1, 2, 3, 0] = -1.0
    found = image_statistics(xr.DataArray(x, dims=["image", "channel", "row", "column"]))
    expected = {
        "ink": [2.0, 0.5 / 3, 0.0],
        "row": [2.0, 0.0, 1.5],
        "column": [2.0, 4.0, 2.0],
        "spread": [1.0, 0.0, 0.0],
        "hue": [0.0, 2 / 3, 0.0],
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-12, err_msg=name)
    grey = image_statistics(xr.DataArray(x[:, :1], dims=["image", "channel", "row", "column"]))
    assert set(grey) == set(expected) - {"hue"}


@pytest.mark.filterwarnings("ignore:log weights or log likelihoods")
@pytest.mark.parametrize("from_model", [True, False])
def test_prior_predictive_check_is_uniform_only_for_images_of_the_model(from_model: bool) -> None:
    pair = make_pair(Run(network="linear", likelihood="gaussian", noise_scale=0.5, latent_size=2), EVENT)
    with torch.no_grad():
        torch.manual_seed(0)
        x = pair.simulate(torch.zeros(400, *EVENT)).nodes["x"]["value"] + (0.0 if from_model else 0.3)
    checks = predictive_statistics(inference_data(pair, x, draws=200, predictive=200))
    # Equal values, such as the row of ink in one row, are ordered at random.
    ties = np.random.default_rng(0).random(400)
    for name in ("ink", "row", "column"):
        drawn, observed = checks["prior_predictive"][name], checks["observed_data"][name]
        below = ((drawn < observed) + ties * (drawn == observed)).mean(["chain", "draw"]).values
        # The Kolmogorov–Smirnov distance from uniform, and its bound by Dvoretzky, Kiefer and Wolfowitz.
        distance = np.abs(np.sort(below) - np.linspace(0, 1, 400)).max()
        limit = (np.log(2 / 2e-5) / (2 * 400)) ** 0.5 + 1 / 200
        if name == "ink":
            assert (distance < limit) == from_model
        elif from_model:
            assert distance < limit
    figure = diagnosis.predictive_checks(checks)
    assert [ax.get_title() for ax in figure.axes] == list(checks["observed_data"].data_vars)


@pytest.mark.filterwarnings("ignore:log weights or log likelihoods")
@pytest.mark.parametrize("likelihood", ["gaussian", "poisson", "poisson(offset=true)"])
def test_vectors_are_checked_by_dimension(likelihood: str) -> None:
    """The PIT of vectors from the model is uniform, also where counts tie, and not that of others."""
    pair = make_pair(Run(network="linear", likelihood=likelihood, latent_size=2), torch.Size([4]))
    with torch.no_grad():
        torch.manual_seed(0)
        s = torch.ones(400, 4) + torch.arange(400)[:, None] % 3
        x = pair.simulate(s).nodes["x"]["value"]
        x[:, 1] += 2
    statistics = partial(vector_statistics, dimensions=pair.model.likelihood.dimensions)
    checks = predictive_statistics(inference_data(pair, x, draws=100, predictive=100), statistics)
    dimensions = 3 if "offset" in likelihood else 4
    assert list(checks["observed_data"].data_vars) == [*(f"x{number}" for number in range(dimensions)), "total"]
    assert (checks["observed_data"]["x0"].dtype.kind == "i") == ("poisson" in likelihood)
    figure = diagnosis.predictive_checks(checks)
    deviation = [abs(ax.lines[0].get_ydata()).max() for ax in figure.axes]
    limit = (np.log(2 / 2e-5) / (2 * 400)) ** 0.5 + 1 / 100
    assert [each < limit for each in deviation[:3]] == [True, False, True]


def test_figures_show_the_diagnosis(pair: Pair, x: Tensor) -> None:
    found = diagnose(pair, x, nuts=ChainSettings(2, 50, 50), images=[7, 9], **SMALL)
    gap = {"approximation": [1.0, -0.5], "amortisation": [3.0, 2.0], "approximation_se": [0.1] * 2}
    summary = found.summary.assign({name: ("image", values) for name, values in gap.items()})
    found = Diagnosis(found.guide, found.exact, summary, ())
    (ax,) = diagnosis.inference_gap(found).axes
    bars = [(round(bar.get_y(), 6), bar.get_height()) for bar in ax.patches]
    assert bars == [(0, 1.0), (0, -0.5), (1.0, 3.0), (0.0, 2.0)]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["7", "9"]
    panels = diagnosis.marginals(found).axes
    assert [ax.get_title() for ax in panels] == [f"image {row}, z[{latent}]" for row in (7, 9) for latent in (0, 1)]
    for number, ax in enumerate(panels):
        drawn = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) > 10]
        where = {"image": number // 2, "latent": number % 2}
        for points, data in zip(drawn, (found.exact, found.guide), strict=True):
            low, high = np.quantile(latents(data).isel(where), [0.25, 0.75])
            assert points.min() < low < high < points.max() < high + 8 * (high - low)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = {"steps": 2, "depth": 1, "width": 8, "train_images": 64, "test_images": 64, "latent_size": 2}
    measure = {"measure.images": 64, "measure.outer": 64, "measure.likelihood_images": 2, "measure.particles": 2}
    study = Study.load("quick", **tiny, **measure, beta=[0.1, 1], seed=[4, 2])
    return run(study, out=tmp_path_factory.mktemp("study") / "mine", quiet=True).folder


def test_diagnosis_uses_the_requested_run_and_images(folder: Path) -> None:
    work = {"chains": 2, "draws": 20, "warmup": 20, **SMALL}
    (folder / ".diagnosis.part" / "killed").mkdir(parents=True)
    found, out = diagnose_run(folder, {"beta": 0.1}, [5, 1, 5], split="train", **work)
    assert not list(folder.rglob("*.part"))
    assert not (out / "killed").exists()
    assert {"beta": 0.1, "seed": 4, "split": "train", "study": "quick"}.items() <= found.summary.attrs.items()
    (folder / ".diagnosis.part").touch()
    again, next_out = diagnose_run(folder, {"beta": 0.1, "seed": 2}, [5], **work)
    assert (out.name, next_out.name, again.summary.attrs["seed"]) == ("diagnosis_1", "diagnosis_2", 2)
    assert not np.allclose(found.guide["observed_data"]["x"][0], again.guide["observed_data"]["x"][0])
    with xr.open_datatree(out / "guide.nc") as guide, xr.open_dataset(out / "summary.nc") as summary:
        assert guide["posterior"]["image"].values.tolist() == [5, 1]
        xr.testing.assert_allclose(summary.load(), found.summary)
    names = {"marginals", "inference_gap", "prior_predictive", "posterior_predictive"}
    assert {file.stem for file in out.glob("*.png")} == {file.stem for file in out.glob("*.svg")} == names


@pytest.mark.parametrize(
    ("select", "images", "message"),
    [
        ({}, [0], r"beta: expected one of \[0.1, 1.0\], got no beta"),
        ({"beta": 3}, [0], r"beta: expected one of \[0.1, 1.0\], got 3"),
        ({"gamma": 3}, [0], "unknown axis 'gamma'; valid: beta, seed"),
        ({"beta": 1}, [64], r"images: expected rows of the 64 test images, from 0 on, got \[64\]"),
        ({"beta": 1}, [-1], "images: expected rows"),
        ({"beta": 1}, [], "images: expected rows"),
    ],
)
def test_unknown_run_or_image_is_an_error_and_writes_nothing(
    folder: Path, select: dict[str, float], images: list[int], message: str
) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=message):
        diagnose_run(folder, select, images)
    assert sorted(folder.iterdir()) == before
