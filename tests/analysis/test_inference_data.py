from contextlib import nullcontext
from pathlib import Path

import arviz_plots
import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from matplotlib import pyplot
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrovae import Pair, Run, make_pair
from pyrovae.analysis.inference_data import inference_data
from pyrovae.errors import UnsupportedError
from pyrovae.estimators import importance_diagnostics

EVENT = torch.Size([1, 4, 4])
#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27
GROUPS = {
    "posterior",
    "sample_stats",
    "log_likelihood",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "observed_data",
}


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, *EVENT, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pair() -> Pair:
    return make_pair(Run(network="linear", likelihood="gaussian", noise_scale=0.01, latent_size=2), EVENT)


class Counts(PyroModule):
    """A model from elsewhere: z ~ Gamma(2, 1) and counts x ~ Poisson(z), under a plate with another name."""

    def __init__(self) -> None:
        super().__init__("counts")
        self.rate = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("rows", len(x), dim=-1):
            with poutine.scale(scale=beta):
                z = pyro.sample("intensity", dist.Gamma(2.0, self.rate))
            pyro.sample("count", dist.Poisson(z), obs=x)


class LogNormalGuide(PyroModule):
    """A guide for `Counts` that differs from the posterior Gamma(2 + x, 2)."""

    def __init__(self) -> None:
        super().__init__("log_normal")
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("rows", len(x), dim=-1), poutine.scale(scale=beta):
            pyro.sample("intensity", dist.LogNormal((1 + x).log() - 0.7, self.scale))


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"guide": "full_rank"},
        {"guide": "flow"},
        {"prior": "vamp", "components": 4},
        {"prior": "aggregate"},
        {"model": "gap"},
        {"model": "hierarchical", "guide": "hierarchical"},
    ],
    ids=lambda parts: "-".join(map(str, parts.values())) or "plain",
)
def test_every_pair_has_all_groups_and_survives_a_round_trip(parts: dict[str, str], x: Tensor, tmp_path: Path) -> None:
    pair = make_pair(Run(depth=1, width=8, latent_size=2, **parts), EVENT, images=torch.rand(8, *EVENT))
    pair.refresh(torch.rand(8, *EVENT))
    attrs = {"study": "mine", "beta": 0.1, "seed": 3}
    data = inference_data(pair, x, draws=30, predictive=10, images=[4, 0, 7], attrs=attrs, beta=0.1)
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "data.nc", engine="h5netcdf") as back:
        xr.testing.assert_identical(back.load(), data)
    assert set(data.children) == GROUPS
    assert dict(attrs) == {name: data.attrs[name] for name in attrs}
    assert "torch" in data.attrs["versions"]
    sites = ["z1", "z2"] if "model" in parts and parts["model"] == "hierarchical" else ["z"]
    for group, draws in (("posterior", 30), ("prior", 10)):
        assert sorted(data[group].data_vars) == sites
        for values in data[group].data_vars.values():
            assert values.shape == (1, draws, 3, 2)
            assert values.dims[:3] == ("chain", "draw", "image")
    assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "image", "channel", "row", "column")
    assert data["posterior_predictive"].sizes["draw"] == data["prior_predictive"].sizes["draw"] == 10
    assert data["observed_data"]["image"].values.tolist() == [4, 0, 7]
    np.testing.assert_array_equal(data["observed_data"]["x"], x)
    assert np.isfinite(data["sample_stats"]["log_weight"]).all()


def test_arviz_accepts_any_pair() -> None:
    counts = torch.tensor([0.0, 3.0, 9.0])
    data = inference_data(Pair(Counts(), LogNormalGuide()), counts, draws=4000)
    assert dict(data["posterior"]["intensity"].sizes) == {"chain": 1, "draw": 4000, "image": 3}
    summary = arviz_stats.summary(data, var_names=["intensity"])
    assert summary["mean"].astype(float).is_monotonic_increasing
    assert (data.azstats.ess()["intensity"] > 2000).all()
    weights = (data["sample_stats"]["log_weight"] - data["sample_stats"]["log_weight"].max("draw")).pipe(np.exp)
    mean = (data["posterior"]["intensity"] * weights).sum("draw") / weights.sum("draw")
    # Weighted by p(z, x) / q(z|x), the guide's draws have the posterior's mean, (2 + x) / 2.
    spread = ((data["posterior"]["intensity"] - mean) ** 2 * weights**2).sum("draw") ** 0.5 / weights.sum("draw")
    truth = torch.as_tensor((2 + counts) / 2)
    assert (abs(mean.values[0] - truth.numpy()) < TWO_SIDED * spread.values[0]).all()
    assert data["prior"]["intensity"].values.mean() == pytest.approx(2, abs=TWO_SIDED * (2 / 300) ** 0.5)
    arviz_plots.plot_dist(data, var_names=["intensity"], backend="matplotlib")
    pyplot.close("all")


@pytest.mark.filterwarnings("ignore:log weights or log likelihoods")
def test_draws_weights_and_images_match_the_pair(pair: Pair, x: Tensor) -> None:
    data = inference_data(pair, x, draws=2000, predictive=2000)
    z = torch.as_tensor(data["posterior"]["z"].values[0]).float()
    q = pair.guide.posterior(x)
    assert ((z.mean(0) - q.mean).abs() < TWO_SIDED * q.stddev / 2000**0.5).all()
    with torch.no_grad():
        p = pair.likelihood(x.expand(2000, *x.shape).flatten(0, 1), z.flatten(0, 1))
        log_p = p.log_prob(x.expand(2000, *x.shape).flatten(0, 1)).unflatten(0, (2000, 3))
        log_w = log_p + pair.model.prior().log_prob(z) - q.log_prob(z)
    for group, name, expected in (("log_likelihood", "x", log_p), ("sample_stats", "log_weight", log_w)):
        found = torch.as_tensor(data[group][name].values[0]).float()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.05)
    drawn = torch.as_tensor(data["posterior_predictive"]["x"].values[0])
    residual = drawn - p.mean.unflatten(0, (2000, 3))
    assert residual.std() == pytest.approx(0.01, rel=0.05)


class Narrow(PyroModule):
    """z ~ N(0, 1), x ~ N(z, σ²)."""

    def __init__(self, sigma: float) -> None:
        super().__init__("narrow")
        self.sigma = sigma

    def forward(self, x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(z, self.sigma), obs=x)


class Standard(PyroModule):
    """q(z|x) = p(z)."""

    def forward(self, x: Tensor, beta: float = 1.0) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def test_every_number_in_arviz_is_float64(x: Tensor) -> None:
    pair = make_pair(Run(network="linear", likelihood="gaussian", latent_size=2), EVENT)
    data = inference_data(pair, x, draws=30, predictive=10)
    assert {str(values.dtype) for group in data.children.values() for values in group.data_vars.values()} == {"float64"}


@pytest.mark.parametrize("sigma", [0.1, 0.05])
def test_leave_one_out_has_the_k_hat_of_the_log_likelihoods(sigma: float) -> None:
    """The weights 1 / p(x|z) are up to exp(300) apart at σ = 0.1, and exp(1,200) at σ = 0.05."""
    pair, x = Pair(Narrow(sigma), Standard("standard")), torch.zeros(3)
    underflow = "where ArviZ's Pareto k̂"
    with pytest.warns(UserWarning, match=underflow) if sigma < 0.1 else nullcontext():
        data = inference_data(pair, x, draws=2000)
    log_p = torch.as_tensor(data["log_likelihood"]["x"].values[0]).T
    expected = importance_diagnostics(-log_p).pareto_k
    assert (expected > 0.7).all()
    if sigma == 0.1:
        with pytest.warns(UserWarning, match="shape parameter of Pareto distribution is greater than 0.70"):
            found = arviz_stats.loo(data, pointwise=True, reff=1.0)
        np.testing.assert_allclose(found.pareto_k, expected, rtol=1e-6)


def test_prior_draws_of_the_gap_model_come_from_the_prior(x: Tensor) -> None:
    pair = make_pair(Run(model="gap", depth=1, width=8, latent_size=2), EVENT)
    pair.refresh(torch.rand(8, *EVENT))
    with torch.no_grad():
        for parameter in pair.guide.parameters():
            parameter.zero_()
        pair.guide.encoder[-1].bias[:2] = 5.0  # the inference marginal is about 5
    pair.refresh(torch.rand(8, *EVENT))
    data = inference_data(pair, x, draws=1000, predictive=1000)
    z = data["prior"]["z"].values
    assert abs(data["posterior"]["z"].values.mean() - 5) < 0.2
    assert abs(z.mean()) < TWO_SIDED / z.size**0.5


def test_same_seed_gives_the_same_draws_without_global_state(
    pair: Pair, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (inference_data(pair, x, draws=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    xr.testing.assert_equal(first, again)
    assert not np.allclose(first["posterior"]["z"], other["posterior"]["z"])
    monkeypatch.setattr("pyrovae.estimators.likelihood.images_per_chunk", lambda x: 7)
    chunks = inference_data(pair, x, draws=20, predictive=5)
    assert chunks["posterior"].sizes["draw"] == 20
    assert chunks["posterior_predictive"].sizes["draw"] == 5
    assert len(np.unique(chunks["posterior"]["z"])) == 20 * 3 * 2


@pytest.mark.parametrize("names", [("latent", "pixel"), ("draw", "x"), ("z", "a/b")])
def test_reserved_site_names_are_rejected_and_others_renamed(names: tuple[str, str]) -> None:
    latent, observed = names

    class Model(PyroModule):
        def forward(self, x: Tensor, beta: float = 1.0) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample(latent, dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample(observed, dist.Normal(z, 1.0).to_event(1), obs=x)

    class Guide(PyroModule):
        def forward(self, x: Tensor, beta: float = 1.0) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample(latent, dist.Normal(x, 1.0).to_event(1))

    pair, x = Pair(Model("model"), Guide("guide")), torch.rand(3, 2)
    if latent == "latent":
        data = inference_data(pair, x, draws=5)
        assert data["posterior"]["latent"].dims == ("chain", "draw", "image", "latent_latent")
        assert data["prior_predictive"]["pixel"].dims == ("chain", "draw", "image", "pixel_pixel")
    else:
        with pytest.raises(UnsupportedError, match="expected sites without a slash and not called chain, draw, image"):
            inference_data(pair, x, draws=5)


def test_prior_may_depend_on_the_image() -> None:
    class Model(PyroModule):
        def forward(self, x: Tensor, beta: float = 1.0) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x, 0.1).to_event(1))
                pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)

    class Guide(PyroModule):
        def forward(self, x: Tensor, beta: float = 1.0) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    data = inference_data(Pair(Model("model"), Guide("guide")), torch.tensor([[0.0], [5.0]]), draws=50)
    assert abs(data["prior"]["z"].mean(["chain", "draw"]).values.flatten() - [0, 5]).max() < 0.1


def test_site_with_a_second_plate_is_rejected() -> None:
    class Model(PyroModule):
        def forward(self, x: Tensor, beta: float = 1.0) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                with pyro.plate("pixels", 2, dim=-2):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    class Guide(PyroModule):
        def forward(self, x: Tensor, beta: float = 1.0) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    with pytest.raises(UnsupportedError, match=r"site 'x': expected one batch dimension, got \[2, 3\]"):
        inference_data(Pair(Model("model"), Guide("guide")), torch.rand(3, 2), draws=5)
