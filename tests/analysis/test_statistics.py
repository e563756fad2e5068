"""The arithmetic of errors, against published values, other packages, and formulas written out."""

from itertools import product
from math import inf, isnan, nan, sqrt
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpy.typing import NDArray
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from pyrovae.analysis.findings.information import falling
from pyrovae.analysis.findings.statistics import (
    Effect,
    Variance,
    adjusted,
    combined,
    compared,
    critical_value,
    effect,
    effect_of_numbers,
    exceeded,
    lead,
    run_variance,
)

Array = NDArray[np.float64]
FIRST_LESS_SECOND = np.array([1.0, -1.0])


def of_runs(means: Array, images: Array | None = None) -> xr.DataArray:
    """Values ``[k, seed, data_seed, image]`` with these means over images; the same differences on every image."""
    per_image = np.array([-1.0, 1.0, -2.0, 2.0]) if images is None else images
    values = means.reshape(*means.shape, *[1] * (3 - means.ndim), 1) + per_image
    return xr.DataArray(values, dims=("k", "seed", "data_seed", "image"), coords={"k": range(len(means))})


def as_table(means: Array) -> pd.DataFrame:
    """One row for each run, with its setting, seed and training set."""
    places = np.array(list(np.ndindex(means.shape)))
    return pd.DataFrame({"y": means.ravel(), **dict(zip("ksd", places.T, strict=False))})


# Errors over runs


def test_difference_of_two_settings_is_the_paired_t_test() -> None:
    means = np.random.default_rng(0).normal(100, 1, (2, 5))
    found, reference = effect(of_runs(means), "k", {0: 1, 1: -1}, 0), stats.ttest_rel(*means)
    assert found.p_different == pytest.approx(reference.pvalue, rel=1e-6)
    interval = reference.confidence_interval(0.95)
    assert (found.low, found.estimate + found.half_width) == pytest.approx(tuple(interval), rel=1e-6)


def test_seed_shared_by_all_settings_has_no_effect_on_errors() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(100, 1, (4, 3))
    weights = np.array([1.0, 0, -1, 0])
    apart, shared = (run_variance(each[..., None], weights) for each in (means, means + 50 * rng.normal(size=3)))
    assert shared == pytest.approx(apart)


@pytest.mark.parametrize(("settings", "seeds"), [(2, 2), (3, 5), (7, 3)])
def test_variance_of_the_family_is_that_of_two_way_residuals(settings: int, seeds: int) -> None:
    means = np.random.default_rng(0).normal(size=(settings, seeds))
    weights = np.linspace(-1, 1, settings)
    fitted = ols("y ~ C(k) + C(s)", as_table(means)).fit()
    found = run_variance(means[..., None], weights, of_family=True)
    assert found == pytest.approx((fitted.mse_resid * (weights @ weights) / seeds, fitted.df_resid))


@pytest.mark.parametrize("seed", range(8))
def test_variance_is_the_largest_of_family_settings_and_contrast(seed: int) -> None:
    means = np.random.default_rng(seed).normal(size=(6, 4)) * np.array([4.0, 1, 1, 1, 1, 1])[:, None]
    fitted = ols("y ~ C(k) + C(s)", as_table(means)).fit()
    squares = (np.asarray(fitted.resid).reshape(6, 4) ** 2).sum(1) / 3
    # E squares_k = σ²_k (1 − 2/K) + mean σ² / K.
    settings = np.maximum((squares - fitted.mse_resid / 6) * 6 / 4, 0)
    for one, other in ((0, 1), (2, 3)):
        weights = np.zeros(6)
        weights[[one, other]] = FIRST_LESS_SECOND
        own = (means[one] - means[other]).var(ddof=1)
        largest = max(2 * fitted.mse_resid, settings[one] + settings[other], own)
        assert run_variance(means[..., None], weights) == pytest.approx((largest / 4, 15))
        assert run_variance(means[..., None], weights, of_family=True).value == pytest.approx(2 * fitted.mse_resid / 4)


def test_training_sets_alone_are_repeats_as_seeds_are() -> None:
    means = np.random.default_rng(0).normal(size=(3, 4))
    weights = np.array([1.0, 0, -1])
    over_seeds, over_sets = (run_variance(np.expand_dims(means, axis), weights) for axis in (2, 1))
    assert over_seeds == over_sets


def test_crossed_seeds_and_training_sets_follow_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    means = sum(rng.normal(size=shape) for shape in ((4, 3, 5), (4, 3, 1), (4, 1, 5), (1, 3, 5)))
    table = anova_lm(ols("y ~ (C(k) + C(s) + C(d)) ** 3 - C(k):C(s):C(d)", as_table(means)).fit())
    squares = [table.mean_sq[row] for row in ("C(k):C(s)", "C(k):C(d)", "Residual")]
    sizes = np.array(squares) * 2 / 15
    df = (sizes @ [1, 1, -1]) ** 2 / (sizes**2 @ [1 / 6, 1 / 12, 1 / 24])
    found = run_variance(means, np.array([1.0, -1, 0, 0]), of_family=True)
    assert found == pytest.approx((sizes @ [1, 1, -1], df))


def test_satterthwaite_by_hand() -> None:
    # 4 + 2 − 1 = 5, and 5² / (4²/2 + 2²/4 + 1²/8) = 25 / 9.125.
    assert combined(Variance(4, 2), Variance(2, 4), Variance(1, 8)) == pytest.approx((5, 25 / 9.125))


def test_combined_variance_is_at_least_each_part_of_it() -> None:
    assert combined(Variance(3, 2), Variance(1, 4), Variance(2, 8)) == (3, 2)
    assert combined(Variance(1, 2), Variance(1, 4), Variance(9, 8)) == (1, 2)
    assert combined(Variance(0, 2), Variance(0, 4), Variance(0, 8)) == (0, 2)


# Errors over images, and both


def test_error_over_images_is_that_of_the_mean_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    values = xr.DataArray(rng.normal(size=(2, 3, 40)), dims=("k", "seed", "image"), coords={"k": [0, 1]})
    differences = (values[0] - values[1]).mean("seed").values
    found = effect(values, "k", {0: 1, 1: -1}, 0)
    assert found.estimate == pytest.approx(differences.mean())
    assert sqrt(found.images) == pytest.approx(stats.sem(differences))


def test_interval_adds_images_and_runs_each_with_its_own_quantile() -> None:
    found = Effect(1.0, 0.04, Variance(0.09, 4), 3)
    assert found.half_width == pytest.approx(sqrt(1.959964**2 * 0.04 + 2.776445**2 * 0.09), rel=1e-6)


@pytest.mark.parametrize("rivals", [0, 2, 6, 19])
@pytest.mark.parametrize("tail", [0.4, 0.05, 1e-3, 1e-6])
@pytest.mark.parametrize(("images", "runs"), [(0.04, 0.09), (1e-9, 1.0), (1.0, 1e-9), (0.0, 1.0), (1.0, 0.0)])
def test_tail_is_the_inverse_of_the_quantile(rivals: int, tail: float, images: float, runs: float) -> None:
    found = Effect(1.0, images, Variance(runs, 6), 3, rivals=rivals)
    assert found.tail(found.quantile(tail)) == pytest.approx(tail, rel=1e-4)


def test_tail_beyond_the_estimate_is_that_of_the_other_side() -> None:
    found = Effect(1.0, 0.04, Variance(0.09, 4), 3)
    assert found.tail(-0.3) == pytest.approx(1 - found.tail(0.3))
    assert found.tail(0.0) == 0.5


def test_effect_without_any_error_is_certain() -> None:
    assert Effect(1.0, 0.0, Variance(0.0, 4), 3).p_different == 0


def test_one_run_has_an_interval_over_images_and_no_p() -> None:
    found = effect(of_runs(np.array([[3.0], [1.0]]), np.arange(9.0)), "k", {0: 1, 1: -1}, 0)
    assert found.estimate == 2
    assert not found.is_known
    assert isnan(found.p_different)
    assert isnan(found.p_equivalent)
    assert Effect(1.0, 0.04).half_width == pytest.approx(1.959964 * 0.2, rel=1e-6)


def test_number_of_a_run_adds_errors_of_both_settings_over_images() -> None:
    means = np.random.default_rng(0).normal(size=(3, 4))
    numbers, errors = (
        xr.DataArray(each, dims=("k", "seed"), coords={"k": range(3)}) for each in (means, np.full((3, 4), 0.1))
    )
    found = effect_of_numbers(numbers, errors, "k", {0: 1, 2: -1})
    assert found.estimate == pytest.approx((means[0] - means[2]).mean())
    assert found.images == pytest.approx(2 * 0.1**2)
    assert found.runs == pytest.approx((stats.sem(means[0] - means[2]) ** 2, 3))


# Which runs and images count


def test_effect_on_a_gap_is_that_on_train_minus_test() -> None:
    """Images of the two splits are separate samples, with as many images as each has; the runs are the same."""
    draws = np.random.default_rng(0)
    values = xr.DataArray(
        draws.normal(size=(2, 3, 1, 2, 6)),
        dims=("k", "seed", "data_seed", "split", "image"),
        coords={"k": [0, 1], "split": ["test", "train"]},
    )
    values[..., 0, 4:] = nan  # fewer test images
    found = effect(values, "k", {0: 1.0, 1: -1.0}, 0.01)
    train, test = (values.sel(split=split) for split in ("train", "test"))
    alone = [effect(each, "k", {0: 1.0, 1: -1.0}, 0.01) for each in (train, test)]
    assert found.estimate == pytest.approx(alone[0].estimate - alone[1].estimate)
    assert found.images == pytest.approx(alone[0].images + alone[1].images)
    gaps = (train.mean("image") - test.mean("image")).transpose("k", "seed", "data_seed").values
    assert found.runs == pytest.approx(run_variance(gaps, FIRST_LESS_SECOND))
    assert isnan(effect(values.where(values.split == "train"), "k", {0: 1.0, 1: -1.0}, 0.01).estimate)


def test_images_missing_in_all_runs_are_padding() -> None:
    values = of_runs(np.random.default_rng(0).normal(size=(3, 4)))
    padded = values.pad(image=(0, 5))
    assert effect(padded, "k", {0: 1, 1: -1}, 0.1) == effect(values, "k", {0: 1, 1: -1}, 0.1)


@pytest.mark.parametrize("value", [nan, inf])
def test_bad_value_leaves_out_its_setting_and_nothing_else(value: float) -> None:
    values = of_runs(np.random.default_rng(0).normal(size=(4, 3)))
    spoilt = values.copy()
    spoilt[3, 1, 0, 2] = value
    assert effect(spoilt, "k", {0: 1, 1: -1}, 0.1) == effect(values[:3], "k", {0: 1, 1: -1}, 0.1)
    assert isnan(effect(spoilt, "k", {0: 1, 3: -1}, 0.1).estimate)


def test_margin_is_a_share_of_the_mean_of_the_family() -> None:
    found = effect(of_runs(np.array([[90.0, 92], [110, 108]])), "k", {0: 1, 1: -1}, 0.02)
    assert found.margin == pytest.approx(2)


# Equivalence


@pytest.mark.parametrize("margin", [0.2, 1.0, 5.0])
def test_equivalence_is_two_one_sided_tests(margin: float) -> None:
    means = np.random.default_rng(3).normal(100, 1, (2, 6))
    found = effect(of_runs(means), "k", {0: 1, 1: -1}, margin / means.mean())
    assert found.p_equivalent == pytest.approx(ttost_paired(*means, -margin, margin)[0], rel=1e-6)


def test_equivalence_by_hand() -> None:
    # (2 − 0.5) / 0.3 = 5, (2 − 3) / 0.3 = −3.33, and no distance is smaller than zero.
    runs = Variance(0.09, 4)
    for estimate, statistic in ((0.5, 5), (-0.5, 5), (3.0, -10 / 3)):
        found = Effect(estimate, 0.0, runs, 3, margin=2.0)
        assert found.p_equivalent == pytest.approx(stats.t.sf(statistic, 4), rel=1e-6)
    assert Effect(0.1, 0.0, runs, 3, margin=0.0).p_equivalent > 0.5


# Many settings: critical values of Dunnett (1955) and Hsu (1996), one-sided, correlations of one half

PUBLISHED = {
    (0.05, 5): [2.02, 2.44, 2.68, 2.85, 2.98, 3.08, 3.16, 3.24, 3.30],
    (0.05, 10): [1.81, 2.15, 2.34, 2.47, 2.56, 2.64, 2.70, 2.76, 2.81],
    (0.05, 20): [1.72, 2.03, 2.19, 2.30, 2.39, 2.46, 2.51, 2.56, 2.60],
    (0.05, inf): [1.64, 1.92, 2.06, 2.16, 2.23, 2.29, 2.34, 2.38, 2.42],
    (0.01, 5): [3.37, 3.90, 4.21, 4.43, 4.60, 4.73, 4.85, 4.94, 5.03],
    (0.01, 10): [2.76, 3.11, 3.31, 3.45, 3.56, 3.64, 3.71, 3.78, 3.83],
    (0.01, inf): [2.33, 2.56, 2.68, 2.77, 2.84, 2.89, 2.93, 2.97, 3.00],
}


@pytest.mark.parametrize(("tail", "df"), PUBLISHED)
def test_critical_values_are_the_published_ones(tail: float, df: float) -> None:
    found = [critical_value(tail, rivals, df) for rivals in range(1, 10)]
    np.testing.assert_allclose(found, PUBLISHED[tail, df], atol=0.0101)
    assert np.mean(np.abs(np.subtract(found, PUBLISHED[tail, df])) < 0.0051) > 0.7


def test_tails_of_several_rivals_are_those_of_scipy() -> None:
    samples = np.random.default_rng(0).normal(size=(5, 6)) + np.array([0.2, 0.5, 1.0, 1.5, 0])[:, None]
    reference = stats.dunnett(*samples[:4], control=samples[4], alternative="greater")
    found = [exceeded(statistic, 4, 25) for statistic in reference.statistic]
    np.testing.assert_allclose(found, reference.pvalue, atol=2e-3)


@pytest.mark.parametrize("df", [2, 5.5, 40, inf])
@pytest.mark.parametrize("tail", [0.3, 0.05, 1e-3, 1e-6])
def test_several_rivals_are_between_one_test_and_bonferroni(tail: float, df: float) -> None:
    values = [critical_value(tail, rivals, df) for rivals in (1, 2, 3, 6, 12)]
    assert values == sorted(values)
    for rivals in (2, 3, 6, 12):
        assert critical_value(tail, rivals, df) < stats.t.isf(tail / rivals, df)
        assert exceeded(critical_value(tail, rivals, df), rivals, df) == pytest.approx(tail, rel=1e-6)


def test_best_of_several_leads_by_the_tail_of_its_rivals() -> None:
    means = np.array([[91.0, 93, 92], [90, 90.5, 90], [99, 98, 99], [93, 93, 94]])
    found = lead(of_runs(means), "k", 0.01)
    fitted = ols("y ~ C(k) + C(s)", as_table(means)).fit()
    error = sqrt(fitted.mse_resid * 2 / 3)
    assert (found.best, found.closest, found.tied) == (1, 0, [])
    assert found.effect.estimate == pytest.approx(92 - 90.5 / 3 - 60)
    assert found.effect.p_different == pytest.approx(exceeded(found.effect.estimate / error, 3, 6), rel=1e-6)
    assert found.effect.half_width == pytest.approx(critical_value(0.05, 3, 6) * error, rel=1e-6)
    assert found.effect.p_equivalent == 1


def test_setting_is_tied_with_the_best_within_the_critical_distance() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 5))
    noise -= noise.mean(0) - noise.mean()
    noise -= noise.mean(1, keepdims=True)
    error = sqrt((noise**2).sum() / 12 * 2 / 5)
    distance = critical_value(0.05, 3, 12) * error
    means = 50 + noise + np.array([0, 0.99 * distance, 1.01 * distance, 9])[:, None]
    found = lead(of_runs(means), "k", 0.01)
    assert (found.best, found.closest, found.tied) == (0, 1, [1])


def test_better_of_two_settings_is_tested_on_both_sides() -> None:
    means = np.random.default_rng(0).normal(100, 1, (2, 4))
    found = lead(of_runs(means), "k", 0.01)
    assert found.effect.estimate == pytest.approx(abs(np.subtract(*means).mean()))
    assert found.effect.p_different == pytest.approx(stats.ttest_rel(*means).pvalue, rel=1e-6)
    assert found.effect.p_equivalent < 1


def test_setting_that_varies_far_more_does_not_hide_the_others() -> None:
    """Then, each lead has the variance of its own differences between seeds."""
    rng = np.random.default_rng(0)
    means = np.array([[10.0], [13], [14], [20]]) + rng.normal(size=(4, 5)) * np.array([[0.3], [0.3], [0.3], [90]])
    means[3] += 300 - means[3].mean()
    found = lead(of_runs(means), "k", 0.01)
    assert (found.best, found.closest, found.tied) == (0, 1, [])
    assert found.effect.runs.df == 4
    second = effect(compared(of_runs(means), "k", 0, 1), "k", {1: 1.0, 0: -1.0}, 0.01, 3, of_family=True)
    assert second.runs.value == pytest.approx((means[1] - means[0]).var(ddof=1) / 5)
    assert second.runs.df == 4
    similar = of_runs(means[:3])
    assert compared(similar, "k", 0, 1) is similar


def test_settings_are_compared_by_the_difference_of_splits() -> None:
    """What training and test images share does not vary between the settings that are compared."""
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(3, 5)) * np.array([[1.0], [1], [90]]), rng.normal(size=(2, 3, 5))
    splits = [of_runs(shared + each) for each in own]
    assert compared(splits[0], "k", 0, 1).sizes["k"] == 2
    both = xr.concat(splits, "split").assign_coords(split=["train", "test"])
    assert compared(both, "k", 0, 1).sizes["k"] == 3


def test_closest_rival_of_one_run_is_the_one_with_the_smallest_lead() -> None:
    found = lead(of_runs(np.array([[5.0], [1.0], [2.0]])), "k", 0.01)
    assert (found.best, found.closest) == (1, 2)
    assert not found.effect.is_known


def test_missing_rival_makes_the_lead_unknown() -> None:
    values = of_runs(np.array([[5.0, 5.1], [1.0, 1.2], [2.0, 2.1]]))
    values[0, 1] = nan
    found = lead(values, "k", 0.01)
    assert (found.best, found.closest) == (1, 0)
    assert isnan(found.effect.estimate)


# Many findings


def test_joint_p_values_by_hand() -> None:
    # Three contrasts: the four smallest of six are multiplied by 3, then by 2, then by 1.
    found = adjusted([(0.001, 0.02), (0.01, 0.2), (0.015, 0.9)])
    assert np.ravel(found) == pytest.approx([0.003, 0.06, 0.03, 0.4, 0.045, 0.9])


def test_without_equivalence_joint_p_values_are_bonferroni() -> None:
    different = np.array([0.004, 0.03, 0.02, 0.5])
    found = [p for p, _ in adjusted([(p, 1.0) for p in different])]
    assert found == pytest.approx(multipletests(different, method="bonferroni")[1])
    assert (found >= multipletests(different, method="holm")[1] - 1e-12).all()


def closed(p_values: list[tuple[float, float]]) -> Array:
    """Bonferroni's test of every set of hypotheses that can all be true: at most one of each contrast."""
    found = np.zeros((len(p_values), 2))
    for chosen in product((0, 1, None), repeat=len(p_values)):
        members = [(contrast, kind) for contrast, kind in enumerate(chosen) if kind is not None]
        p = min((len(members) * p_values[contrast][kind] for contrast, kind in members), default=1.0)
        for each in members:
            found[each] = max(found[each], min(1.0, p))
    return found


def test_joint_p_values_are_never_below_those_of_the_closed_test() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p_values = [tuple(each) for each in rng.beta(0.3, 1, (3, 2))]
        assert (np.array(adjusted(p_values)) >= closed(p_values) - 1e-12).all()


def test_joint_p_values_of_two_contrasts_are_those_of_the_closed_test() -> None:
    rng = np.random.default_rng(0)
    for different in rng.uniform(0, 0.1, (100, 2)):
        p_values = [(p, 0.9) for p in different]
        np.testing.assert_allclose(adjusted(p_values), closed(p_values))


def test_no_contrast_has_no_joint_p_value() -> None:
    assert adjusted([]) == []


# What it would take


def test_detectable_effect_is_found_with_the_promised_power() -> None:
    found = Effect(0.0, 0.04, Variance(0.0, 4), 3)
    size = found.detectable(tests=5)
    assert stats.norm.sf(stats.norm.isf(0.005) - size / 0.2) == pytest.approx(0.8)


def test_detectable_lead_is_larger_with_more_rivals_and_more_tests() -> None:
    few, many = (Effect(0.0, 0.04, Variance(0.04, 8), 3, rivals=rivals) for rivals in (2, 6))
    assert few.detectable(1) < many.detectable(1) < many.detectable(4)
    assert few.detectable(1) == pytest.approx(few.quantile(0.05) + Effect(0, 0.04, Variance(0.04, 8)).quantile(0.2))


def test_seeds_needed_are_the_fewest_that_find_the_effect() -> None:
    found = Effect(1.0, 0.01, Variance(0.3, 4), 3)
    needed = found.seeds_needed(2)
    assert needed is not None
    for seeds, enough in ((needed - 1, False), (needed, True)):
        later = Effect(1.0, 0.01, Variance(0.9 / seeds, 2 * (seeds - 1)), seeds)
        assert (later.detectable(2) <= 1) == enough


def test_no_number_of_seeds_replaces_images() -> None:
    assert Effect(1.0, 1.0, Variance(0.3, 4), 3).seeds_needed(1) is None


# The trend


def test_trend_is_the_slope_of_least_squares_times_the_range() -> None:
    rng = np.random.default_rng(0)
    gaps, distortions = rng.normal(size=7), rng.normal(size=7)
    weights = falling(xr.DataArray(gaps, {"beta": np.arange(7.0)}, "beta"))
    slope: Any = stats.linregress(gaps, distortions).slope
    fall = sum(weights[beta] * distortion for beta, distortion in enumerate(distortions))
    assert fall == pytest.approx(-slope * (gaps.max() - gaps.min()))
