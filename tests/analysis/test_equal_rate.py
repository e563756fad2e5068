"""Findings and figures of studies at target rates, on synthetic numbers with a known answer."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from helpers import InMemory
from matplotlib.figure import Figure

from pyrovae import Study
from pyrovae.analysis import figures
from pyrovae.analysis.findings import findings
from pyrovae.analysis.findings.best import best
from pyrovae.analysis.findings.design import prospects
from pyrovae.analysis.findings.verdicts import UNFINISHED
from pyrovae.analysis.report import page
from pyrovae.analysis.report.all_runs import all_runs
from pyrovae.analysis.report.comparison import joined
from pyrovae.store import schema

TARGETS = [10.0, 20.0]


def study_at(effect: float, rates: dict[tuple[int, float], float] | None = None) -> InMemory:
    """Distortions that are lower by ``effect`` with three layers, and by twice as much at the higher target rate."""
    study = Study(name="mine", target_rate=TARGETS, depth=[1, 2, 3], seed=[0, 1, 2]).resolved()
    tree = schema.empty(study)
    runs = xr.full_like(tree["runs/status"], "done", object)
    target, depth = (xr.zeros_like(runs, float) + tree["runs"][name] for name in ("target_rate", "depth"))
    rate = target.copy()
    for (layers, at), value in (rates or {}).items():
        rate.loc[{"depth": layers, "target_rate": at}] = value
    rng = np.random.default_rng(0)
    means = 100 - effect * (depth == 3) - 2 * effect * (target == 20)
    means = means + 0.1 * xr.DataArray(rng.normal(size=means.shape), means.coords, means.dims)
    noise = xr.DataArray(rng.normal(size=100), dims="image")
    both = xr.DataArray([1.0, 1.0], {"split": ["train", "test"]})
    images = xr.Dataset({"distortion": (means + noise) * both, "rate": (rate + 0 * noise) * both})
    for name in ("mutual_information", "log_n", "prior_gap", "prior_gap_se"):
        tree[f"information/{name}"] = xr.zeros_like(rate) + 5.0
    tree["runs/status"] = runs
    for name in ("distortion", "rate"):
        tree[f"rate_distortion/{name}"] = images[name].mean("image").transpose("split", *rate.dims)
    weight = (1 / target).expand_dims(step=[1, 100])
    curve = 0 * weight * both
    tree["curves"] = xr.DataTree(xr.Dataset({"weight": weight, "loss": curve, "distortion": curve, "rate": curve}))
    return InMemory(tree, images)


@pytest.mark.parametrize("sign", [1, -1])
def test_depth_and_rate_are_compared_at_equal_rate(sign: int) -> None:
    """Where the numbers are reversed, so are the verdicts."""
    at = {(each.finding.compared, each.contrast.where): each for each in findings(study_at(2.0 * sign))}
    deep = [at["{high:g} layers instead of {low:g} at equal rate", f"R* = {rate:g}"] for rate in TARGETS]
    rate = [at["R {low:g} → {high:g}", f"depth {depth}"] for depth in (1, 2, 3)]
    assert len(at) == 5, "findings over β and at one β do not apply"
    assert {each.outcome for each in (*deep, *rate)} == {"supported" if sign > 0 else "contradicted"}
    np.testing.assert_allclose([each.contrast.effect.estimate for each in deep], 2.0 * sign, atol=0.4)
    np.testing.assert_allclose([each.contrast.effect.estimate for each in rate], 4.0 * sign, atol=0.4)
    assert deep[0].text == "At equal rate the 3-layer network has a lower test distortion than the 1-layer one"
    assert rate[0].text == "Raising the rate from 10 to 20 nats lowers the test distortion"


def test_runs_that_missed_their_target_are_not_compared() -> None:
    found = findings(study_at(2.0, {(3, 20.0): 18.9}))
    outcomes = {(each.contrast.where, each.contrast.note): each.outcome for each in found}
    missed = "a run missed its target rate"
    assert outcomes == {
        ("R* = 10", ""): "supported",
        ("R* = 20", missed): "undecided",
        ("depth 1", ""): "supported",
        ("depth 2", ""): "supported",
        ("depth 3", missed): "undecided",
    }
    assert all(each.outcome == "supported" for each in findings(study_at(2.0, {(3, 20.0): 19.1})))


def test_values_that_missed_their_target_are_left_out_of_the_best() -> None:
    at_10, at_20 = best(study_at(2.0, {(3, 20.0): 30.0}), "depth", "test D")
    assert (at_10.values, at_10.verdict.outcome) == ((3,), "supported")
    assert set(at_20.values) == {1, 2}
    assert at_20.notes[0] == "without 3, of which a run missed its target rate"
    _, alone = best(study_at(2.0, {(2, 20.0): 30.0, (3, 20.0): 30.0}), "depth", "test D")
    assert (alone.verdict.outcome, alone.verdict.contrast.note) == ("undecided", UNFINISHED)
    deepest = best(study_at(2.0), "target_rate", "test D")[-1]
    assert (deepest.values, deepest.verdict.contrast.where) == ((20.0,), "depth 3")


def test_plan_names_findings_at_equal_rate() -> None:
    _, *lines = prospects(Study(name="mine", target_rate=TARGETS, depth=[1, 3], seed=[0, 1, 2]))
    assert [line.partition(":")[0].strip() for line in lines] == [
        "R 10 → 20, test distortion falls",
        "3 layers instead of 1 at equal rate, test distortion is lower",
    ]


def axes_of(name: str, study: InMemory) -> list[Any]:
    figure = Figure(layout="constrained")
    figures.FIGURES[name](study, figure.subplots())
    return [ax for ax in figure.axes if ax.has_data()]


def test_figures_run_along_target_rates() -> None:
    study = study_at(2.0)
    (distortion,) = axes_of("distortion", study)
    assert distortion.get_xlabel() == "target rate R* (nats per image)"
    assert distortion.lines[0].get_xdata().tolist() == TARGETS
    (plane,) = axes_of("rate_distortion", study)
    assert "β = 1" not in plane.get_legend_handles_labels()[1]
    assert {each.get_text() for each in plane.texts if each.get_text()} == {"10", "20"}
    assert [each.get_title() for each in axes_of("learning_curves", study)] == ["R* = 10", "R* = 20"]


def test_weight_of_rate_shows_beta_for_each_target() -> None:
    (ax,) = axes_of("weight_of_rate", study_at(2.0))
    drawn = {str(line.get_label()): line.get_ydata().tolist() for line in ax.lines}
    assert drawn["depth 1, R* = 10"] == pytest.approx([0.1, 0.1])
    assert drawn["depth 3, R* = 20"] == pytest.approx([0.05, 0.05])
    assert len(drawn) == 6
    study = study_at(2.0)
    study.tree["curves"] = xr.DataTree(study.tree["curves"].to_dataset().isel(target_rate=0, drop=True))
    assert not axes_of("weight_of_rate", study)


def test_report_has_no_beta_where_it_moves() -> None:
    """Neither for a single target, nor next to a study of several β, of which 1 is a star."""
    alone = schema.empty(Study(name="mine", target_rate=10.0).resolved())
    betas = schema.empty(Study(name="betas", beta=[0.1, 1.0]).resolved())
    assert "beta" not in all_runs({"alone": alone}).frame
    assert len(page._plane(all_runs({"alone": alone})).data) > 1
    both = all_runs({"rates": study_at(2.0).tree, "betas": betas})
    known = both.frame.groupby("study")["beta"].apply(lambda values: values.notnull().all())
    assert known.to_dict() == {"rates": False, "betas": True}
    symbols = {trace.name: {*trace.marker.symbol} for trace in page._plane(both).data if "test" in str(trace.name)}
    assert {name for name, shown in symbols.items() if "star" in shown} == {
        name for name in symbols if name.startswith("study betas")
    }
    table = joined({"rates": study_at(2.0).tree, "betas": betas})["rate_distortion"].to_dataset()
    assert {*table["beta"].values.tolist()} == {"–", "0.1", "1"}
