"""Verdicts on synthetic studies with a known answer."""

from collections.abc import Iterable
from math import inf, nan

import numpy as np
import pytest
import xarray as xr
from helpers import InMemory

from pyrovae import Study
from pyrovae.analysis.findings import FINDINGS, findings
from pyrovae.analysis.findings.caveats import caveats
from pyrovae.analysis.findings.statistics import Effect, Variance
from pyrovae.analysis.findings.verdicts import Contrast, Finding, Verdict, decide
from pyrovae.analysis.report import tables
from pyrovae.store import schema

LOG_N = 8.0
#: Test distortion at β = 0.1, 1, 2 and 4; G at the same β; whether I is saturated.
DISTORTIONS, GAPS, SATURATED = [90.0, 95.0, 97.0, 120.0], [50.0, 30.0, 10.0, 5.0], [True, True, True, False]


def results(
    study: Study, distortion: xr.DataArray, gap: xr.DataArray, information: xr.DataArray, noise: float
) -> InMemory:
    """Results of a study with these means, and noise that differs between images of each run."""
    axes = study.dimensions()
    frame = xr.DataArray(np.zeros(study.shape()), axes)
    rng = np.random.default_rng(0)
    images = (distortion + frame).expand_dims(split=["train", "test"], image=200)
    images = images + noise * rng.normal(size=images.shape)
    codes = {"mutual_information": information, "log_n": frame + LOG_N, "prior_gap": gap, "prior_gap_se": frame + 0.1}
    groups = {
        "likelihood": xr.Dataset({"log_likelihood": frame, "high_pareto_k": frame}),
        "information": xr.Dataset({name: (value + frame).transpose(*axes) for name, value in codes.items()}),
        "runs": xr.Dataset({"status": xr.full_like(frame, "done", object)}),
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs["study"] = study.to_yaml()
    return InMemory(tree, xr.Dataset({"distortion": images, "reconstruction_distance": images * nan}))


def study_of(
    effect: float, noise: float = 1.0, seeds: int = 3, saturated: bool = True, margin: float = 0.01
) -> InMemory:
    """Distortions that fall by ``effect`` from β = 1 to 0.1, and from one layer to three; G is larger by 30 nats."""
    study = Study(name="mine", beta=[0.1, 1.0], seed=list(range(seeds)), depth=[1, 3], margin=margin)
    falls = xr.DataArray([[-effect, 0.0], [-2 * effect, -effect]], {"depth": [1, 3], "beta": [0.1, 1.0]})
    gap = xr.DataArray([50.0, 20.0], {"beta": [0.1, 1.0]})
    return results(study, 100 + falls, gap, gap * 0 + (LOG_N if saturated else 5.0), noise)


def study_of_betas(
    distortions: list[float] = DISTORTIONS,
    gaps: list[float] = GAPS,
    saturated: list[bool] = SATURATED,
    noise: float = 0.3,
) -> InMemory:
    """Distortion, G, and whether I is saturated at β = 0.1, 1, 2 and 4."""
    betas = [0.1, 1.0, 2.0, 4.0]
    study = Study(name="mine", beta=betas, seed=[0, 1, 2])
    of_beta = {"beta": betas}
    information = np.where(saturated, LOG_N, 5.0)
    columns = (xr.DataArray(values, of_beta) for values in (distortions, gaps, information))
    return results(study, *columns, noise)


def about_saturation(study: InMemory) -> list[Verdict]:
    return [verdict for verdict in findings(study) if "log N" in verdict.text]


def outcomes(verdicts: Iterable[Verdict]) -> set[str]:
    return {verdict.outcome for verdict in verdicts}


def test_every_finding_is_declared_once() -> None:
    assert len({finding.text for finding in FINDINGS}) == len(FINDINGS)


@pytest.mark.parametrize(
    ("effect", "noise", "outcome"),
    [
        (5.0, 1.0, "supported"),
        (-5.0, 1.0, "contradicted"),
        (0.0, 1.0, "no meaningful difference"),
        (0.0, 50.0, "undecided"),
    ],
)
def test_verdict_follows_the_effect(effect: float, noise: float, outcome: str) -> None:
    verdicts = findings(study_of(effect, noise))
    assert len(verdicts) == 5  # β and saturation at either depth, and depth
    assert outcomes(verdicts) == {outcome}
    assert all(abs(verdict.contrast.effect.estimate - effect) < noise for verdict in verdicts)


def test_reversed_effect_is_said_in_words_without_a_sign() -> None:
    above, below = (findings(study_of(effect))[0].words for effect in (5.0, -5.0))
    assert above == "test distortion falls by 4.96 ± 0.32 nats (95% over images and 3 seeds, for this training set)"
    assert below == "test distortion rises by 5.04 ± 0.32 nats (95% over images and 3 seeds, for this training set)"


def test_short_line_of_a_contradicted_finding_says_what_was_expected() -> None:
    supported, contradicted = (findings(study_of(effect))[0].summary for effect in (5.0, -5.0))
    assert supported == "depth 1, β 1 → 0.1: test distortion falls by 4.96 ± 0.32 nats"
    assert contradicted == (
        "depth 1, β 1 → 0.1: test distortion rises by 5.04 ± 0.32 nats (expected: test distortion falls)"
    )


def test_undecided_effect_says_what_would_decide_it() -> None:
    study = study_of(4.0)
    runs = xr.DataArray(np.random.default_rng(1).normal(size=(2, 2, 3)), dims=("beta", "depth", "seed"))
    study.images()["distortion"] += 2 * runs
    verdict = findings(study)[0]
    effect, needed = verdict.contrast.effect, verdict.contrast.effect.seeds_needed(5)
    assert verdict.outcome == "undecided"
    assert needed is not None
    assert (
        f"; {effect.detectable(5):.1f} nats or more could have been detected, and about {needed} seeds in all would be"
        in verdict.words
    )


def test_undecided_effect_that_needs_more_images_says_so() -> None:
    verdict = findings(study_of(0.0, 50.0))[0]
    assert verdict.words.endswith("and over 100 seeds, or more images, would be enough for this effect")


@pytest.mark.parametrize(
    ("effect", "noise", "outcome"),
    [(5.0, 1.0, "supported"), (-5.0, 1.0, "contradicted"), (0.0, 1.0, "no meaningful difference")],
)
def test_verdict_on_large_beta_follows_training_distortion(effect: float, noise: float, outcome: str) -> None:
    study = study_of_betas([100.0] * 4, noise=noise)
    study.images()["distortion"].loc[{"beta": 4.0, "split": "train"}] += effect
    (verdict,) = [each for each in findings(study) if each.text.startswith("Raising β from 1 to 4 underfits")]
    assert verdict.outcome == outcome
    if effect:
        assert verdict.words.startswith(f"training distortion {'rises' if effect > 0 else 'falls'} by ")


# Seeds and margins


@pytest.mark.parametrize("effect", [5.0, -1e6, 0.0])
def test_one_seed_decides_nothing(effect: float) -> None:
    verdicts = findings(study_of(effect, seeds=1))
    assert outcomes(verdicts) == {"undecided"}
    assert {verdict.sources for verdict in verdicts} == {"images only"}
    assert all(verdict.words.endswith("(95% over images only); one seed decides nothing") for verdict in verdicts)
    assert tables.joint(verdicts) == []


def test_margin_of_zero_calls_nothing_equal() -> None:
    assert outcomes(findings(study_of(0.0, margin=0.0))) == {"undecided"}


def test_wide_margin_calls_a_known_difference_meaningless() -> None:
    assert outcomes(findings(study_of(5.0, margin=0.01))) == {"supported"}
    assert outcomes(findings(study_of(5.0, margin=0.2))) == {"no meaningful difference"}


def test_verdicts_hold_jointly_over_all_contrasts() -> None:
    verdicts = findings(study_of(5.0))
    assert {verdict.tests for verdict in verdicts} == {5}
    for verdict in verdicts:
        assert verdict.p_different == pytest.approx(min(1.0, 5 * verdict.contrast.effect.p_different))
    assert tables.joint(verdicts)[0].startswith("Verdicts hold jointly at 95% over 5 comparisons")


def test_effect_that_is_significant_alone_can_be_undecided_jointly() -> None:
    finding = Finding(None, "", "", lambda study: ())
    clear = Effect(2.9, 0.0, Variance(1.0, 30), 3)
    (alone,) = decide([(finding, Contrast("", clear))], "")
    beside = decide(
        [(finding, Contrast("", effect)) for effect in (clear, *[Effect(0.1, 0.0, Variance(1.0, 30))] * 9)], ""
    )
    assert (alone.outcome, beside[0].outcome) == ("supported", "undecided")


def test_contrasts_without_an_effect_are_not_counted() -> None:
    finding = Finding(None, "", "", lambda study: ())
    known = Contrast("", Effect(9.0, 0.0, Variance(1.0, 30), 3))
    verdicts = decide(
        [(finding, known), (finding, Contrast("", note="unknown")), (finding, Contrast("", Effect(9.0, 1.0)))], ""
    )
    assert [verdict.outcome for verdict in verdicts] == ["supported", "undecided", "undecided"]
    assert {verdict.tests for verdict in verdicts} == {1}


# The central finding


def trend_by_hand(distortions: list[float], gaps: list[float]) -> float:
    slope, _ = np.polyfit(gaps, distortions, 1)
    return -slope * (max(gaps) - min(gaps))


@pytest.mark.parametrize("middle", [95.0, 60.0, 130.0])
def test_trend_uses_every_saturated_beta(middle: float) -> None:
    distortions = [90.0, middle, 97.0, 500.0]
    (verdict,) = about_saturation(study_of_betas(distortions, noise=0.01))
    assert verdict.contrast.effect.estimate == pytest.approx(trend_by_hand(distortions[:3], GAPS[:3]), abs=0.01)
    assert (
        verdict.text
        == "After I has reached log N at β ≤ 2, test distortion keeps falling as G grows, here by 40.0 nats"
    )


def test_trend_reverses_with_the_distortion_and_with_the_gap() -> None:
    falling, rising = about_saturation(study_of_betas()), about_saturation(study_of_betas([97.0, 95.0, 90.0, 120.0]))
    shrinking = about_saturation(study_of_betas(gaps=[10.0, 30.0, 50.0, 5.0]))
    assert [each[0].outcome for each in (falling, rising, shrinking)] == ["supported", "contradicted", "contradicted"]
    assert rising[0].words.startswith("test distortion rises by ")


def test_trend_stops_at_the_first_beta_that_is_not_saturated() -> None:
    study = study_of_betas(saturated=[True, True, False, True])
    (verdict,) = about_saturation(study)
    assert " at β ≤ 1," in verdict.text
    assert verdict.contrast.effect.estimate == pytest.approx(5, abs=0.2)


def test_one_unsaturated_seed_leaves_out_its_beta() -> None:
    study = study_of_betas()
    study.tree["information"]["mutual_information"].loc[{"beta": 2.0, "seed": 1}] = 7.5
    assert " at β ≤ 1," in about_saturation(study)[0].text


@pytest.mark.parametrize(
    ("saturated", "reason"),
    [
        ([False] * 4, "I reaches log N at no β, and a comparison needs two values of β"),
        ([True, False, True, True], "I reaches log N only at β = 0.1, and a comparison needs two values of β"),
    ],
)
def test_trend_needs_two_saturated_betas(saturated: list[bool], reason: str) -> None:
    (verdict,) = about_saturation(study_of_betas(saturated=saturated))
    assert verdict.outcome == "undecided"
    assert verdict.words == reason
    assert verdict.text == "After I has reached log N, test distortion keeps falling as G grows"


def test_trend_needs_a_gap_that_changes() -> None:
    (verdict,) = about_saturation(study_of_betas(gaps=[20.0, 20.05, 20.0, 5.0]))
    assert verdict.outcome == "undecided"
    assert verdict.words == "G hardly changes over the β at which I reaches log N, 0.1 to 2"


def test_trend_says_where_information_is_not_measured() -> None:
    study = study_of_betas()
    study.tree["information"]["mutual_information"].loc[{"beta": 0.1, "seed": 0}] = nan
    (verdict,) = about_saturation(study)
    assert verdict.outcome == "undecided"
    assert verdict.words == "I is not measured in every run at β = 0.1"


# Runs that are missing


@pytest.mark.parametrize("value", [inf, nan])
def test_non_finite_distortion_of_some_images_decides_nothing(value: float) -> None:
    study = study_of(5.0)
    study.images()["distortion"].loc[{"beta": 0.1, "seed": 1, "image": slice(0, 80)}] = value
    verdicts = [verdict for verdict in findings(study) if "layer" not in verdict.text]
    assert outcomes(verdicts) == {"undecided"}
    assert all("not finite" in verdict.words for verdict in verdicts)


def test_padding_is_ignored() -> None:
    study = study_of(5.0)
    study.images()["distortion"].loc[{"image": slice(150, None)}] = nan
    assert outcomes(findings(study)) == {"supported"}


@pytest.mark.parametrize("status", ["pending", "diverged"])
def test_run_that_is_not_done_decides_nothing(status: str) -> None:
    study = study_of(5.0)
    study.tree["runs"]["status"].loc[{"beta": 0.1, "seed": 2, "depth": 3}] = status
    found = {(verdict.text[:8], verdict.contrast.where): verdict.outcome for verdict in findings(study)}
    assert found == {
        ("Lowering", "depth 1"): "supported",
        ("Lowering", "depth 3"): "undecided",
        ("At β = 0", ""): "undecided",
        ("After I ", "depth 1"): "supported",
        ("After I ", "depth 3"): "undecided",
    }


# Caveats


def test_numbers_from_an_earlier_step_are_a_caveat() -> None:
    tree = schema.empty(Study(name="mine", steps=2400, beta=[0.1, 1, 4], seed=[0, 1]))
    tree["runs"]["step"][:] = [[1200, 1200], [600, -1], [2400, 2400]]
    tree["runs"]["status"].loc[{"beta": 4.0}] = "done"
    assert caveats(tree) == [
        "1 of 6 runs are not done yet",
        "3 of 6 runs have not reached step 2,400: their numbers are from step 600 to 1,200; 'pyrovae run' continues "
        "them",
    ]


def test_diverged_run_is_a_caveat() -> None:
    study = study_of(5.0)
    status = study.tree["runs"]["status"]
    status.loc[{"beta": 0.1, "seed": 1, "depth": 3}] = "diverged"
    diverged_at = xr.where(status == "diverged", 1234, -1)
    reason = xr.full_like(status, "the guide has auxiliary sites")
    facts = {"diverged_at": diverged_at, "step": xr.full_like(diverged_at, 4), "skipped": reason, "versions": reason}
    facts["distortion_kind"] = xr.full_like(status, "negative log-probability")
    study.tree["runs"] = xr.DataTree(xr.Dataset({"status": status, **facts}))
    curve = (["split", "step"], [[9.0, 1, 1], [9.0, 2, 2]])
    curves = xr.Dataset({"loss": curve, "distortion": curve}, {"split": ["train", "test"], "step": [0, 3, 4]})
    study.tree["curves"] = xr.DataTree(curves)
    diverged, skipped, *_ = caveats(study.tree)
    assert diverged.startswith("the run at beta=0.1, seed=1, depth=3 diverged at step 1,234")
    assert skipped == "the guide has auxiliary sites"
