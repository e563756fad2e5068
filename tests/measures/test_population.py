"""The population's I and G as a measure: in a study, afterwards, and drawn."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import STORED
from matplotlib.figure import Figure
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from pyrovae import open_results, run
from pyrovae.analysis import figures
from pyrovae.estimators import prior_fit
from pyrovae.measures.declared import of_settings
from pyrovae.measures.population import _exemplars
from pyrovae.runner.remeasure import reevaluate
from pyrovae.store.results import Results

STUDY = STORED.replace(seed=[0, 1], validation_images=40)


@pytest.fixture(scope="module", autouse=True)
def _few_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior_fit, "STEPS", 60)
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A study with the measure."""
    study = STUDY.replace(**{"measure.also": ["population"]})
    return run(study, tmp_path_factory.mktemp("population") / "study", quiet=True)


def test_ends_of_both_brackets_add_up_to_the_rate(measured: Results) -> None:
    """I of the validation codes and what is left of their rate, which has other draws of z here."""
    found = measured.tree["population"].to_dataset()
    rate = measured.tree["rate_distortion"].to_dataset().sel(split="validation")
    error = np.hypot(rate["rate_se"], found["gap_high_se"])
    assert (abs(found["information_low"] + found["gap_high"] - rate["rate"]) < 4.27 * error).all()
    assert (found["information_low"] <= np.log(40)).all()
    for low, high in (("information_low", "information_high"), ("closable_gap", "gap_high")):
        errors = np.hypot(found[f"{low}_se"], found[f"{high}_se"])
        assert (found[low] < found[high] + 4.27 * errors).all()


def test_study_without_validation_images_says_what_it_needs(tmp_path: Path) -> None:
    study = STORED.replace(seed=0, beta=1.0, depth=1, **{"measure.also": ["population"]})
    results = run(study, tmp_path / "study", quiet=True)
    assert "population" not in {each.name for each in of_settings(STUDY.measure)}
    assert results.tree["runs/skipped"].item() == "population: not measured, it needs validation_images"
    assert results.tree["population/closable_gap"].isnull().all()


@pytest.mark.long
def test_evaluation_equals_what_the_study_measures(measured: Results, tmp_path: Path) -> None:
    run(STUDY, tmp_path / "study", quiet=True)
    _, again = reevaluate(tmp_path / "study", measures=["population"])
    xr.testing.assert_equal(again.tree["population"].to_dataset(), measured.tree["population"].to_dataset())


def test_figure_fills_both_brackets_below_the_rate(measured: Results) -> None:
    figure = Figure(layout="constrained")
    ax = figures.population(measured, figure.subplots())
    labels = ax.get_legend_handles_labels()[1]
    depths = STUDY.axes["depth"]
    assert {f"{symbol} depth {depth}" for symbol in "RIG" for depth in depths} <= {*labels}
    assert len(ax.collections) == 2 * len(depths)
    rates = {str(line.get_label()): line.get_ydata() for line in ax.lines}
    means = measured.tree["population"].to_dataset().mean("seed").sel(depth=depths[0])
    expected = (means["information_low"] + means["gap_high"]).sortby("beta")
    np.testing.assert_allclose(rates[f"R depth {depths[0]}"], expected)
    filled = ax.collections[0].get_paths()[0].vertices[:, 1]
    ends = (means["information_low"].min().item(), means["information_high"].max().item())
    assert (filled.min(), filled.max()) == pytest.approx(ends)
    assert not figures.population(open_results("paper-slice"), Figure().subplots()).has_data()


def test_headline_of_a_run_is_its_closable_gap(measured: Results) -> None:
    assert "population/closable_gap" in measured.table().columns


def test_exemplars_have_the_scale_that_suits_other_codes() -> None:
    """Codes of two narrow clusters, under which a normal distribution is far less likely."""
    draws = torch.Generator().manual_seed(0)
    clusters = 3.0 * torch.randint(0, 2, (4000, 1), generator=draws).expand(4000, 2) - 1.5
    z = (clusters + 0.1 * torch.randn(4000, 2, generator=draws)).double()
    new, log_p = z[3000:], _exemplars(z[:3000])
    truth = MixtureSameFamily(
        Categorical(torch.ones(2)), Independent(Normal(torch.tensor([[-1.5] * 2, [1.5] * 2]).double(), 0.1), 1)
    )
    lost = (truth.log_prob(new) - log_p(new)).mean()
    normal = MultivariateNormal(z.mean(0), z.T.cov()).log_prob(new).mean()
    assert 0 < lost < 0.3 < truth.log_prob(new).mean() - normal
