"""Findings about priors and γ on synthetic numbers with a known answer, and their figures."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from helpers import InMemory
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from pyrovae import InputError, Study
from pyrovae.analysis import figures
from pyrovae.analysis.findings import findings
from pyrovae.analysis.findings.verdicts import Verdict
from pyrovae.store.results import Evaluation

PRIORS = ["flow", "mixture", "standard_normal", "vamp"]


def study_of(
    axis: str,
    values: list[str] | list[float],
    distortion: list[float],
    rate: list[float],
    gap: list[float],
    noise: float,
) -> InMemory:
    """A study at β = 1 with three seeds and 200 images; ``noise`` differs from run to run."""
    rng = np.random.default_rng(1)
    shape = (2, 200, 1, 3, len(values))
    dims = ("split", "image", "beta", "seed", axis)
    coords = {"split": ["train", "test"], "beta": [1.0], "seed": [0, 1, 2], axis: values}
    images: dict[str, Any] = {
        name: (dims, rng.normal(size=(2, 200, 1, 1, 1)) + noise * rng.normal(size=shape) + np.array(means))
        for name, means in (("distortion", distortion), ("rate", rate))
    }
    images["log_likelihood"] = (dims, 3 - images["distortion"][1] - images["rate"][1])
    codes = {
        "mutual_information": np.full(shape[2:], 5.0),
        "test_mutual_information": np.full(shape[2:], 4.0),
        "log_n": np.full(shape[2:], 8.0),
        "prior_gap": np.zeros(shape[2:]) + np.array(gap),
        "test_prior_gap": np.zeros(shape[2:]) + np.array(gap) + np.arange(3.0)[:, None],
        "prior_gap_se": np.full(shape[2:], 0.1),
    }
    information = xr.Dataset(
        {name: (dims[2:], value) for name, value in codes.items()}, {k: coords[k] for k in dims[2:]}
    )
    images["reconstruction_distance"] = (dims, np.full(shape, np.nan))
    cells = xr.Dataset(images, coords).mean("image")
    known = xr.zeros_like(information["prior_gap"])
    bounds = {"log_likelihood": known, "high_pareto_k": known, "annealed_log_likelihood": known.where(False)}
    groups = {"information": information, "rate_distortion": cells, "likelihood": xr.Dataset(bounds)}
    groups["runs"] = xr.Dataset({"status": xr.full_like(known, "done", object)})
    curve = xr.DataArray([[9.0, 2.0, 2.0]] * 2, {"split": ["train", "test"], "step": [0, 50, 100]})
    groups["curves"] = xr.Dataset({name: curve * xr.ones_like(known) for name in ("loss", "distortion", "rate")})
    tree = xr.DataTree.from_dict(groups)
    tree.attrs["study"] = Study(name="mine", beta=[1.0], seed=[0, 1, 2], **{axis: values}).to_yaml()
    return InMemory(tree, xr.Dataset(images, coords))


def about_priors(distortion: list[float], rate: list[float], noise: float = 0.3) -> list[Verdict]:
    verdicts = findings(study_of("prior", PRIORS, distortion, rate, [2.0, 2.0, 6.0, 1.0], noise))
    return [verdict for verdict in verdicts if "log N" not in verdict.text]


def test_best_prior_is_named_where_it_beats_all_others() -> None:
    by_distortion, by_sum, by_bound, explained = about_priors([90, 91, 92, 93], [10, 10, 12, 5])
    ahead = "this comparison alone puts it ahead of every other prior"
    assert by_distortion.text == f"The best of 4 priors by test D is flow; {ahead}"
    assert by_sum.text == f"The best of 4 priors by test R + D is vamp; {ahead}"
    assert by_bound.text == f"The best of 4 priors by the bound of test log p(x) is vamp; {ahead}"
    assert explained.text.startswith("vamp in place of standard_normal lowers test R + D (D +1")
    assert "(D +1.003 ± 0.066, R −6.989 ± 0.047, G on training images −5.00 ± 0.28 nats)" in explained.text
    verdicts = by_distortion, by_sum, by_bound, explained
    assert [verdict.outcome for verdict in verdicts] == ["supported"] * 4
    assert [round(verdict.contrast.effect.estimate) for verdict in verdicts] == [1, 2, 2, 6]
    starts = ["flow leads mixture by ", "vamp leads flow by ", "vamp leads flow by ", "test R + D falls by "]
    assert all(verdict.words.startswith(start) for verdict, start in zip(verdicts, starts, strict=True))


def test_another_prior_is_named_where_the_numbers_are_reversed() -> None:
    by_distortion, by_sum, by_bound, *rest = about_priors([93, 92, 91, 90], [5, 10, 4, 10])
    assert "by test D is vamp;" in by_distortion.text
    assert "by test R + D is standard_normal;" in by_sum.text
    assert "by the bound of test log p(x) is standard_normal;" in by_bound.text
    assert not rest  # the best prior is the reference itself


def test_unclear_winner_is_undecided_and_names_all_that_may_be_best() -> None:
    by_distortion, by_sum, _, explained = about_priors([90.0, 90.0, 95.0, 90.0], [5, 5, 6, 5])
    for verdict, score in ((by_distortion, "test D"), (by_sum, "test R + D")):
        assert verdict.outcome == "undecided"
        best = verdict.contrast.terms["best"]
        tied = ", ".join(sorted({"flow", "mixture", "vamp"} - {best}))
        assert (
            verdict.text
            == f"The best of 4 priors by {score} is {best}; this comparison alone cannot tell it from {tied}"
        )
        assert verdict.contrast.effect.low < 0
    assert explained.outcome == "supported"


@pytest.mark.parametrize(
    ("axis", "values", "means"), [("prior", PRIORS, [90, 91, 92, 93]), ("gamma", [0.0, 0.1, 1.0], [90, 91, 92])]
)
def test_loose_bounds_are_not_compared(axis: str, values: list[Any], means: list[float]) -> None:
    study = study_of(axis, values, means, [5] * len(values), [2.0] * len(values), 0.3)
    study.tree["likelihood"]["high_pareto_k"][..., 1, -1] = 0.3
    (by_bound,) = [verdict for verdict in findings(study) if "log p(x)" in verdict.text]
    assert by_bound.outcome == "undecided"
    assert by_bound.words == "k̂ is high in some of the runs, whose bounds may be loose and do not compare"
    assert not by_bound.contrast.effect.is_known
    assert not any(prior in by_bound.text for prior in PRIORS)


def test_of_two_equal_priors_neither_is_meaningfully_better() -> None:
    verdicts = findings(study_of("prior", ["flow", "vamp"], [90, 90], [5, 5], [2.0, 2.0], 0.3))
    assert [verdict.outcome for verdict in verdicts[:2]] == ["no meaningful difference"] * 2


def test_best_prior_is_compared_with_the_first_without_a_standard_normal() -> None:
    (explained,) = [
        verdict
        for verdict in findings(study_of("prior", ["flow", "vamp", "mixture"], [92, 91, 90], [5, 5, 5], [2.0] * 3, 0.3))
        if "in place of" in verdict.text
    ]
    assert explained.text.startswith("mixture in place of flow lowers test R + D")
    assert explained.contrast.effect.rivals == 2


def test_prior_that_was_not_measured_is_not_ranked() -> None:
    study = study_of("prior", PRIORS, [90, 91, 92, 93], [10, 10, 12, 5], [2.0, 2.0, 6.0, 1.0], 0.3)
    study.images()["distortion"].loc[{"prior": "flow"}] = np.nan
    assert findings(study)[0].text.startswith("The best of 3 priors by test D is mixture;")
    study.images()["distortion"].loc[{"prior": "vamp", "seed": 0}] = np.nan
    assert {verdict.outcome for verdict in findings(study)[:2]} == {"undecided"}


def test_prior_of_which_a_run_diverged_is_left_out_by_name() -> None:
    study = study_of("prior", PRIORS, [80, 91, 92, 93], [10, 10, 12, 5], [2.0, 2.0, 6.0, 1.0], 0.3)
    study.tree["runs/status"].loc[{"prior": "flow", "seed": 1}] = "diverged"
    (by_distortion, *_), (answer, *_) = findings(study), study.best("prior", by="test D")
    assert by_distortion.outcome == "supported"
    assert by_distortion.text.startswith(
        "The best of 3 priors by test D, without flow, of which a run diverged, is mixture;"
    )
    assert answer.values == ("mixture",)
    assert "without flow, of which a run diverged" in repr(answer)


def test_one_prior_that_trains_is_not_the_best() -> None:
    study = study_of("prior", PRIORS[:2], [80, 91], [10, 10], [2.0, 2.0], 0.3)
    study.tree["runs/status"].loc[{"prior": "flow", "seed": 1}] = "diverged"
    assert {verdict.outcome for verdict in findings(study)} == {"undecided"}


def about_gamma(study: InMemory) -> list[Verdict]:
    return [verdict for verdict in findings(study) if "γ" in verdict.text]


@pytest.mark.parametrize(
    ("effect", "outcome"), [(3.0, "supported"), (-3.0, "contradicted"), (0.0, "no meaningful difference")]
)
def test_verdict_on_gamma_follows_the_effect(effect: float, outcome: str) -> None:
    study = study_of("gamma", [0.0, 0.1, 1.0], [90 - effect, 90, 90], [9, 8, 7], [9.0, 5.0, 2.0], 0.3)
    by_distortion, *others = about_gamma(study)
    assert by_distortion.text == "Lowering γ from 1 to 0 lowers the test distortion"
    assert by_distortion.outcome == outcome
    by_sum, by_bound = (verdict.contrast.effect.estimate for verdict in others)
    assert abs(by_sum - (effect - 2)) < 0.2
    assert abs(by_bound - by_sum) < 1e-9
    assert [verdict.words.split(" by ")[0] for verdict in others] == (
        ["test R + D falls", "the bound of test log p(x) rises"]
        if effect > 2
        else ["test R + D rises", "the bound of test log p(x) falls"]
    )


def saturated_gamma(gaps: list[float], distortions: list[float]) -> InMemory:
    study = study_of("gamma", [0.0, 0.1, 1.0], distortions, [9, 8, 7], gaps, 0.3)
    study.tree["information"]["mutual_information"][:] = 8.0
    return study


@pytest.mark.parametrize(("effect", "outcome"), [(3.0, "supported"), (-3.0, "contradicted")])
def test_gamma_tests_the_central_finding_where_information_is_saturated(effect: float, outcome: str) -> None:
    verdicts = about_gamma(saturated_gamma([9.0, 5.0, 2.0], [90 - effect, 90, 90]))
    central = [verdict for verdict in verdicts if verdict.finding.number == 7]
    assert [verdict.outcome for verdict in central] == [outcome]
    assert central[0].text == (
        "With I at log N and β fixed, lowering γ, the weight of G, from 1 to 0 lowers the test distortion "
        "while G grows by 7.0 nats"
    )
    assert central[0].contrast.effect.estimate == pytest.approx(effect, abs=0.2)
    assert "Lowering γ from 1 to 0 lowers the test distortion" not in {verdict.text for verdict in verdicts}


@pytest.mark.parametrize("where", [{"gamma": 0.0, "seed": 1}, {"gamma": 1.0, "seed": 2}])
def test_one_run_that_is_not_saturated_makes_gamma_no_test_of_the_gap(where: dict[str, float]) -> None:
    study = saturated_gamma([9.0, 5.0, 2.0], [87.0, 90, 90])
    study.tree["information"]["mutual_information"].loc[where] = 7.5
    verdicts = about_gamma(study)
    assert not [verdict for verdict in verdicts if verdict.finding.number == 7]
    assert verdicts[0].text == "Lowering γ from 1 to 0 lowers the test distortion"


def test_gamma_without_growth_of_the_gap_is_no_test_of_it() -> None:
    verdicts = about_gamma(saturated_gamma([2.0, 5.0, 9.0], [87.0, 90, 90]))
    assert not [verdict for verdict in verdicts if verdict.finding.number == 7]
    assert verdicts[0].text == "Lowering γ from 1 to 0 lowers the test distortion"


def panels_of(draw: Callable[[Evaluation, Axes], Axes], study: InMemory) -> list[Axes]:
    """The panels of a figure that draws several."""
    figure = Figure(layout="constrained")
    host = draw(study, figure.subplots())
    assert host is figure.axes[0]
    assert not host.has_data()
    return figure.axes[1:]


def test_bars_show_information_and_gap_of_both_splits() -> None:
    study = study_of("prior", PRIORS, [90.0] * 4, [5.0] * 4, [2.0, 3.0, 6.0, 1.0], 0.3)
    (ax,) = panels_of(figures.gap_decomposition, study)
    bars = {str(each.get_label()): each.patches for each in ax.containers if isinstance(each, BarContainer)}
    heights = {label: [bar.get_height() for bar in each] for label, each in bars.items()}
    feet = {label: [bar.get_y() for bar in each] for label, each in bars.items()}
    for side, information, gap in (("train", 5.0, [2, 3, 6, 1]), ("test", 4.0, [3, 4, 7, 2])):
        np.testing.assert_allclose(heights[f"I {side}"], information)
        np.testing.assert_allclose(heights[f"G {side}"], gap)
        np.testing.assert_allclose(feet[f"G {side}"], information)
    assert [label.get_text().replace("\n", "_") for label in ax.get_xticklabels()] == PRIORS


def test_bar_far_above_the_others_is_cut_and_labelled() -> None:
    study = study_of("prior", PRIORS, [90.0] * 4, [5.0] * 4, [2.0, 3.0, 600.0, 1.0], 0.3)
    (ax,) = panels_of(figures.gap_decomposition, study)
    assert ax.get_ylim()[1] < 50
    assert [text.get_text() for text in ax.texts] == ["605", "605"]


def images_of(ax: Axes) -> np.ndarray:
    (image,) = ax.images
    return np.asarray(image.get_array())


@pytest.mark.usefixtures("all_figures")
def test_samples_and_latent_plane_show_the_results(tmp_path: Path) -> None:
    study = study_of("prior", PRIORS, [90.0] * 4, [5.0] * 4, [2.0, 3.0, 6.0, 1.0], 0.3)
    assert not panels_of(figures.samples, study)
    assert not panels_of(figures.latent_plane, study)
    rng = np.random.default_rng(0)
    dims, coords = ["beta", "seed", "prior"], {"beta": [1.0], "seed": [0, 1, 2], "prior": PRIORS}
    pixels = rng.integers(0, 256, (1, 3, 4, 8, 3, 5, 6), dtype=np.uint8)
    sides = ["sample", "channel", "row", "column"]
    samples = xr.Dataset({"image": ([*dims, *sides], pixels)}, coords)
    axis = np.broadcast_to(np.linspace(-3, 3, 7), (1, 3, 4, 7))
    log_density = -0.5 * (axis[..., None, :] ** 2 + axis[..., None] ** 2)
    plane = {"z1": ([*dims, "column"], axis), "z2": ([*dims, "row"], axis)}
    plane |= {name: ([*dims, "row", "column"], log_density) for name in ("log_q", "log_p")}
    study = InMemory(study.tree, study.images(), {"samples": samples, "plane": xr.Dataset(plane, coords)})
    drawn = panels_of(figures.samples, study)
    for row, sample in product(range(4), range(8)):
        strip = images_of(drawn[row])
        np.testing.assert_array_equal(
            strip[:, 6 * sample : 6 * sample + 6], pixels[0, 0, row, sample].transpose(1, 2, 0)
        )
    assert [ax.get_ylabel() for ax in drawn] == PRIORS
    whole = panels_of(figures.latent_plane, study)
    assert [ax.get_title() for ax in whole] == PRIORS
    np.testing.assert_allclose(np.asarray(whole[0].collections[0].get_array()).max(), 1)
    study.tree["rate_distortion"]["floor"] = study.tree["rate_distortion"]["rate"] * np.nan
    names = {file.name for file in figures.save(study, tmp_path)}
    assert {"gap_decomposition.png", "samples.svg", "latent_plane.png"} <= names


def test_swapped_priors_are_not_ranked() -> None:
    study = study_of("prior", PRIORS, [90, 91, 92, 93], [10, 10, 12, 5], [2.0, 2.0, 6.0, 1.0], 0.3)
    study.tree.attrs["prior"] = "vamp"
    assert not [verdict for verdict in findings(study) if "prior" in verdict.text]


def test_missing_gap_is_named_and_not_drawn() -> None:
    study = study_of("prior", PRIORS, [90, 91, 92, 93], [10, 10, 12, 5], [np.nan] * 4, 0.3)
    (explained,) = [verdict for verdict in findings(study) if "in place of" in verdict.text]
    assert explained.outcome == "supported"
    assert "G on training images not measured" in explained.text
    assert not panels_of(figures.gap_decomposition, study)


SUMS = {"vamp": ([90, 91, 92, 93], [10, 10, 12, 5]), "flow": ([93, 92, 91, 90], [2, 10, 12, 15])}


@pytest.mark.parametrize("best", SUMS)
def test_best_value_is_alone_where_it_beats_all_others(best: str) -> None:
    study = study_of("prior", PRIORS, *SUMS[best], [2.0] * 4, 0.3)
    (found,) = study.best("prior")
    assert (found.values, found.verdict.outcome) == ((best,), "supported")
    (other,) = study.best("prior", by="train log p(x)", beta=1.0)
    assert other.values == (best,)
    (cheapest,) = study.best("prior", "test R")
    assert cheapest.values == ({"vamp": "vamp", "flow": "flow"}[best],)


def test_values_that_cannot_be_told_apart_are_all_best() -> None:
    (found,) = study_of("prior", PRIORS, [90.0, 90.0, 95.0, 90.0], [5, 5, 6, 5], [2.0] * 4, 0.3).best("prior")
    assert set(found.values) == {"flow", "mixture", "vamp"}
    assert found.verdict.outcome == "undecided"
    assert repr(found).startswith(f"undecided: by test R + D, prior is best at {' or '.join(found.values)} (β = 1): ")
    assert f": {found.values[0]} leads " in repr(found)


def test_closest_rival_that_makes_no_meaningful_difference_is_among_the_best() -> None:
    (found,) = study_of("prior", PRIORS[:2], [90.0, 90.3], [5, 5], [2.0, 2.0], 0.001).best("prior")
    assert (found.verdict.outcome, found.values) == ("no meaningful difference", tuple(PRIORS[:2]))


@pytest.mark.parametrize(("means", "note"), [([90, 95, 99], "1 is the smallest depth"), ([95, 90, 99], "")])
def test_best_value_at_an_end_of_the_axis_says_so(means: list[float], note: str) -> None:
    (found,) = study_of("depth", [1, 2, 3], means, [5] * 3, [2.0] * 3, 0.3).best("depth", "test D")
    assert found.notes[:1] == ((f"{note} compared, and smaller ones may be better",) if note else ())
    assert ("smaller ones may be better" in repr(found)) is bool(note)


def test_missing_run_leaves_the_best_unknown() -> None:
    study = study_of("prior", PRIORS, *SUMS["vamp"], [2.0] * 4, 0.3)
    images = study.images().copy(deep=True)
    images["distortion"][{"prior": 1, "seed": 0}] = np.nan
    (found,) = InMemory(study.tree, images).best("prior")
    assert found.verdict.outcome == "undecided"
    assert "the best prior is unknown" in repr(found)


def test_one_seed_leaves_every_value_among_the_best() -> None:
    many = study_of("prior", PRIORS, *SUMS["vamp"], [2.0] * 4, 0.3)
    one = InMemory(many.tree.sel(seed=[0]), many.images().sel(seed=[0]))
    one.tree.attrs["study"] = Study(name="mine", seed=0, prior=PRIORS).to_yaml()
    (found,) = one.best("prior")
    assert (found.values[0], set(found.values)) == ("vamp", set(PRIORS))
    assert "one seed decides nothing" in repr(found)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("depth",), "unknown axis 'depth'; valid: beta, seed, prior"),
        (("seed",), "seed: expected an axis of settings"),
        (("beta",), r"beta: expected an axis of settings with several values, got \[1.0\]"),
        (("prior", "test loss"), "by: expected one of train, test and one of D, R"),
        (("prior", "D"), "got 'D'"),
    ],
)
def test_wrong_question_for_the_best_gives_one_line(arguments: tuple[str, ...], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        study_of("prior", PRIORS, *SUMS["vamp"], [2.0] * 4, 0.3).best(*arguments)
