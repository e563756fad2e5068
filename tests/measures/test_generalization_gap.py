"""The measures that are applied on request: numbers, findings, figures, and what they cost."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from helpers import STORED, InMemory

from pyrovae import InputError, Study, run
from pyrovae.analysis import figures
from pyrovae.analysis.findings import findings
from pyrovae.analysis.findings.design import prospects
from pyrovae.analysis.findings.generalization import MEASURE
from pyrovae.analysis.report import tables
from pyrovae.measures.declared import of_settings
from pyrovae.measures.generalization_gap import FALLS_SHORT
from pyrovae.runner.remeasure import reevaluate
from pyrovae.store.results import Results

BOTH = ["generalization_gap", "fixed_decoder_curve"]
STUDY = STORED.replace(seed=[0, 1], **{"measure.gap_images": 8, "measure.gap_temperatures": 4})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A study with both measures."""
    return run(STUDY.replace(**{"measure.also": BOTH}), tmp_path_factory.mktemp("gap") / "study", quiet=True)


def test_parts_add_up_to_the_gap_of_the_elbo(measured: Results) -> None:
    gap, elbo = measured.tree[MEASURE].to_dataset(), measured.tree["rate_distortion/elbo"].to_dataset()["elbo"]
    xr.testing.assert_allclose(gap["decoder_gap"] + gap["guide_gap"], gap["elbo_gap"])
    xr.testing.assert_allclose(gap["elbo_gap"], elbo.sel(split="train", drop=True) - elbo.sel(split="test", drop=True))
    images = measured.images()
    guide = images["inference_gap"].mean("image").diff("split").squeeze("split")
    xr.testing.assert_allclose(guide.drop_vars("split"), gap["guide_gap"].transpose(*guide.dims))
    assert (images["inference_gap"].notnull().sum("image") == 8).all()


def test_inference_gap_is_what_the_elbo_lacks_of_log_p(measured: Results) -> None:
    images = measured.images().isel(image=slice(8))
    elbo = images["split_log_likelihood"] - images["inference_gap"]
    difference = elbo + images["distortion"] + images["rate"]
    assert (abs(difference.mean("image")) < 4.27 * difference.std("image", ddof=1) / 8**0.5 + 0.1).all()
    assert images["inference_gap"].mean("image").max() > 1


def test_curves_begin_at_the_prior_and_end_at_the_posterior(measured: Results) -> None:
    curves = measured.pictures("fixed_decoder_curve")
    first, last = (curves.isel(temperature=at) for at in (0, -1))
    assert (first["inverse_temperature"] == 0).all()
    assert (last["inverse_temperature"] == 1).all()
    assert (first["decoder_rate"] == 0).all()
    bound = -(last["decoder_rate"] + last["decoder_distortion"])
    known = measured.images()["split_log_likelihood"].isel(image=slice(8)).mean("image")
    # The mean of the log weights of chains is at most the logarithm of their mean.
    assert (bound.transpose(*known.dims).values <= known.values + 1e-6).all()


@pytest.mark.long
def test_error_of_annealing_is_bounded_where_images_are_binary(measured: Results, tmp_path: Path) -> None:
    """By images that the model generates, which say nothing about grey ones; more temperatures tighten it."""
    assert measured.tree[MEASURE]["annealing_error"].isnull().all()
    few = STUDY.replace(beta=1.0, depth=1, seed=[0, 1, 2], pixels="static", **{"measure.also": BOTH})
    errors = []
    for number in (2, 60):
        study = few.replace(**{"measure.gap_temperatures": number, "measure.gap_images": 64})
        found = run(study, tmp_path / f"{number}", quiet=True).tree[MEASURE].to_dataset()
        assert (found["annealing_error"] > -4.27 * found["annealing_error_se"]).all()
        errors.append(found["annealing_error"].mean().item())
    assert errors[1] < errors[0] / 4


def test_they_are_measured_only_on_request() -> None:
    assert not {each.name for each in of_settings(STUDY.measure)} & set(BOTH)
    assert not any("generalization gap" in line for line in prospects(STUDY))
    assert sum("generalization gap" in line for line in prospects(STUDY.replace(**{"measure.also": BOTH}))) == 4
    priors = STUDY.replace(prior=["standard_normal", "vamp", "flow"], seed=[0, 1, 2, 3, 4], **{"measure.also": BOTH})
    named = [line for line in prospects(priors) if "generalization gap" in line and "instead of standard" in line]
    assert [line.endswith(": 8 df in each of 4 settings") for line in named] == [True] * 4, named


@pytest.mark.long
def test_evaluation_equals_what_the_study_measures(measured: Results, tmp_path: Path) -> None:
    plain = run(STUDY, tmp_path / "study", quiet=True)
    assert plain.tree[MEASURE]["decoder_gap"].isnull().all()
    assert not any(each.finding.measure for each in findings(plain))
    _, again = reevaluate(tmp_path / "study", measures=BOTH)
    for group in BOTH:
        xr.testing.assert_equal(again.tree[group].to_dataset(), measured.tree[group].to_dataset())
        xr.testing.assert_equal(again.pictures(group), measured.pictures(group))
    own = {str(each) for each in findings(measured) if each.finding.measure == MEASURE}
    assert len(own) == len(findings(again)) == 6  # β at two depths, and depth, each for decoder and guide
    assert {each.text for each in findings(again)} <= {each.text for each in findings(measured)}


def test_effects_are_differences_of_the_parts(measured: Results) -> None:
    """Of the guide exactly; of the decoder up to the ELBO of the other images."""
    gap = measured.tree[MEASURE].to_dataset().mean("seed")
    for verdict in findings(measured):
        if "guide's part" in verdict.text and verdict.contrast.where:
            cell = gap["guide_gap"].sel(depth=int(verdict.contrast.where.removeprefix("depth ")))
            expected = float(cell.sel(beta=1.0) - cell.sel(beta=0.1))
            assert verdict.contrast.effect.estimate == pytest.approx(expected, rel=1e-4)


@pytest.mark.long
def test_priors_are_compared_with_the_standard_normal_part_by_part(tmp_path: Path) -> None:
    priors = STUDY.replace(prior=["mixture", "standard_normal", "student_t"], depth=1, beta=0.1, components=3)
    results = run(priors.replace(**{"measure.also": [MEASURE]}), tmp_path / "study", quiet=True)
    gap = results.tree[MEASURE]["guide_gap"].mean("seed").squeeze()
    effects = {
        each.text: each.contrast.effect.estimate for each in findings(results) if each.finding.measure == MEASURE
    }
    assert len(effects) == 4
    for other in ("mixture", "student_t"):
        text = f"With {other} in place of standard_normal, the guide's part of the generalization gap is smaller"
        expected = gap.sel(prior="standard_normal") - gap.sel(prior=other)
        assert effects[text] == pytest.approx(expected.item(), rel=1e-4)
    _, swapped = reevaluate(tmp_path / "study", prior="aggregate")
    assert not any("in place of" in each.text for each in findings(swapped))


def test_parts_say_nothing_where_annealing_ends_below_the_elbo(measured: Results) -> None:
    images, tree = measured.images().copy(deep=True), measured.tree.copy(deep=True)
    images["inference_gap"].loc[{"depth": 1, "beta": 0.1, "split": "train"}] -= 1000
    tree[MEASURE]["inference_gap"].loc[{"depth": 1, "beta": 0.1, "split": "train"}] -= 1000
    found = [each for each in findings(InMemory(tree, images)) if each.finding.measure == MEASURE]
    short = {each.contrast.where: each.contrast.note for each in found if "β" in each.text and each.contrast.where}
    assert short == {"depth 1": FALLS_SHORT.text, "depth 2": ""}
    shown = tables.measured(tree)[MEASURE]
    marked = [column for column in shown.columns if any("§" in str(cell) for cell in column.cells)]
    assert [column.header for column in marked] == ["decoder's part", "guide's part"]
    assert [sum("§" in str(cell) for cell in column.cells) for column in marked] == [1, 1]


@pytest.mark.usefixtures("all_figures")
def test_figures_show_both(measured: Results) -> None:
    drawn = figures.drawn(measured, BOTH)
    assert list(drawn) == BOTH
    (ax,) = drawn["generalization_gap"].axes
    expected = measured.tree[MEASURE].to_dataset().mean("seed").sel(depth=1)["decoder_gap"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected.sortby("beta").values)
    (ax,) = drawn["fixed_decoder_curve"].axes
    curves = measured.pictures("fixed_decoder_curve", beta=0.1, depth=1, seed=1).isel(split=1)
    drawn_lines = [line.get_xydata() for line in ax.lines]
    expected_line = np.stack([curves["decoder_rate"].values, curves["decoder_distortion"].values], 1)
    assert any(line.shape == expected_line.shape and np.allclose(line, expected_line) for line in drawn_lines)
    assert figures.drawn(measured, ["nothing"]) == {}


def test_pair_with_several_levels_is_skipped_with_a_note(tmp_path: Path) -> None:
    study = Study(**STUDY.settings() | {"model": "hierarchical", "guide": "hierarchical", "depth": 1, "beta": 1.0})
    results = run(study.replace(seed=0, **{"measure.also": BOTH}), tmp_path / "study", quiet=True)
    assert "generalization_gap" in str(results.tree["runs/skipped"].values)


def test_gap_needs_one_temperature_at_least() -> None:
    with pytest.raises(InputError, match="gap_temperatures"):
        STUDY.replace(**{"measure.gap_temperatures": 0})
