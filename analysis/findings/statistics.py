"""How a verdict is made: effects, their errors over images, runs and training sets, and joint tests of all findings.

An effect is a difference between settings, over the same images and the same seeds. Its error has two parts that are
estimated separately, because they come from samples of very different size: images, of which there are hundreds, and
runs, of which there are a few. An interval adds them in quadrature, each with the quantile for its own degrees of
freedom.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, isfinite, nan, sqrt
from typing import Any, NamedTuple, TypeVar

import numpy as np
import xarray as xr
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy import optimize, special, stats

Array = NDArray[np.float64]
T = TypeVar("T", float, Array)
#: Joint coverage of verdicts, and coverage of each interval.
LEVEL = 0.95
ALPHA = 1 - LEVEL
#: Variances are similar unless a test rejects that at this level.
SIMILAR = 0.01
#: The probability with which a detectable effect is found.
POWER = 0.8
#: Most seeds that are recommended.
MOST_SEEDS = 100
#: Axes over which runs are repeated.
REPEATED = ("seed", "data_seed")


class Variance(NamedTuple):
    """An estimated variance and its degrees of freedom."""

    value: float
    df: float


#: Stands for a variance of zero where one divides by it.
_TINY = 1e-300
#: The variance over a single run of each setting.
_NO_RUNS = Variance(nan, 0)


@dataclass(frozen=True)
class Effect:
    """An estimated difference and its errors.

    Attributes:
        estimate: the difference; positive if it is as predicted.
        images: variance of the estimate over images.
        runs: variance of the estimate over runs and, where they vary, training sets; without degrees of freedom if each
            setting has one run.
        repeats: number of seeds or training sets, whichever is larger.
        margin: the size below which a difference has no meaning.
        rivals: number of settings that the better one was compared with, where it was chosen for being the best.
    """

    estimate: float = nan
    images: float = nan
    runs: Variance = _NO_RUNS
    repeats: int = 1
    margin: float = 0.0
    rivals: int = 0

    @property
    def is_known(self) -> bool:
        """Whether it was measured, in several runs."""
        return isfinite(self.estimate) and self.runs.df > 0

    @property
    def half_width(self) -> float:
        """Half width of the interval at the level `LEVEL`, of this effect alone."""
        return self.quantile(ALPHA if self.rivals else ALPHA / 2)

    @property
    def low(self) -> float:
        """The lower end of this interval."""
        return self.estimate - self.half_width

    @property
    def p_different(self) -> float:
        """The probability of an estimate as far from zero if there were no effect; NaN if it is not known.

        If the setting was chosen for being the best, it is the probability that its lead over the closest rival were
        as large if that were as good (multiple comparisons with the best, Hsu 1984).
        """
        tail = self.tail(abs(self.estimate))
        return tail if self.rivals else 2 * tail

    @property
    def p_equivalent(self) -> float:
        """The larger p of two one-sided tests against the margin (Schuirmann 1987); 1 for the best of several."""
        return 1.0 if self.rivals else self.tail(self.margin - abs(self.estimate))

    def tail(self, distance: float) -> float:
        """The one-sided p at which the interval ends at a distance from the estimate.

        At this p, z² s²_images and t² s²_runs are two shares of distance²; the shares are those that give equal p.
        """
        if not self.is_known:
            return nan
        if distance <= 0:
            return 1.0 if self.rivals else 1 - self.tail(-distance) if distance else 0.5
        share = optimize.brentq(lambda each: float(np.subtract(*self._tails(distance, each))), 0, 1, xtol=1e-14)
        return self._tails(distance, share)[share > 0.5]

    def _tails(self, distance: float, share: float) -> tuple[float, float]:
        """The p of the images and of the runs, if this share of distance² is that of the runs."""
        over_images, over_runs = (
            exceeded(distance * sqrt(part / max(variance, _TINY)), self._compared, df)
            for part, variance, df in ((1 - share, self.images, inf), (share, *self.runs))
        )
        return over_images, over_runs

    def quantile(self, tail: float) -> float:
        """Distance from the estimate to the end of a one-sided interval: √(z² s²_images + t² s²_runs)."""
        if not self.is_known:
            return sqrt(self.images) * float(stats.norm.isf(tail)) if isfinite(self.estimate) else nan
        over_images, over_runs = (critical_value(tail, self._compared, df) for df in (inf, self.runs.df))
        return sqrt(over_images**2 * self.images + over_runs**2 * self.runs.value)

    @property
    def _compared(self) -> int:
        return max(1, self.rivals)

    def detectable(self, tests: int) -> float:
        """The smallest effect that is found with a probability of `POWER`, among so many tests."""
        return self.quantile(ALPHA / tests / (1 if self.rivals else 2)) + replace(self, rivals=0).quantile(1 - POWER)

    def seeds_needed(self, tests: int) -> int | None:
        """Seeds with which an effect of this size would be found; None if more than `MOST_SEEDS`, or more images."""
        for seeds in range(self.repeats, MOST_SEEDS + 1):
            if self.with_repeats(seeds).detectable(tests) <= abs(self.estimate):
                return seeds
        return None

    def with_repeats(self, repeats: int) -> "Effect":
        """The effect as it would be with so many seeds: less variance over runs, and more degrees of freedom."""
        df = self.runs.df * (repeats - 1) / max(1, self.repeats - 1)
        return replace(self, runs=Variance(self.runs.value * self.repeats / repeats, df), repeats=repeats)


def repeated(values: xr.DataArray | xr.Dataset) -> list[str]:
    """The dimensions along which runs are repeated: seeds and training sets."""
    return [dim for dim in REPEATED if dim in values.dims]


def variance_of_mean(values: xr.DataArray) -> xr.DataArray:
    """The variance over runs of the mean over seeds and training sets; 0 where a setting has a single run.

    Example:
        >>> variance_of_mean(xr.DataArray([[1.0, 2.0, 3.0], [4.0, np.nan, np.nan]], dims=["beta", "seed"])).values
        array([0.33333333, 0.        ])
    """
    runs = repeated(values)
    number = values.notnull().sum(runs)
    return ((values - values.mean(runs)) ** 2).sum(runs) / ((number - 1) * number).clip(1)


def error_of_mean(values: xr.DataArray, errors: xr.DataArray) -> xr.DataArray:
    """The standard error of the mean over runs, from that of each run over images and from the variance over runs."""
    return (errors.mean(repeated(errors)) ** 2 + variance_of_mean(values)) ** 0.5


def effect(
    values: xr.DataArray,
    axis: str,
    weights: Mapping[Any, float],
    margin: float,
    rivals: int = 0,
    of_family: bool = False,
) -> Effect:
    """The effect Σ_k c_k μ_k of settings along an axis.

    The variance over runs is the largest of three. One is that of all settings, from the residuals
    e_ks = y_ks − ȳ_k − ȳ_s + ȳ of the mean y_ks of each setting and seed, with (K − 1)(S − 1) degrees of freedom. The
    others are larger where the settings of this contrast vary more than the rest: Σ c_k² σ²_k from the residuals of
    each setting, and the variance of the contrast between seeds. Training sets add a part of their own.

    Args:
        values: values per image, over an axis of settings, seeds, perhaps training sets, and images. Images that are
            NaN in all runs are padding; settings of weight zero that have other values that are not finite are ignored.
            If they have a dimension ``split``, the effect is on the mean of the training images minus that of the test
            images.
        axis: the axis.
        weights: c_k by setting, which add up to zero; others are zero.
        margin: the size below which a difference has no meaning, as a share of the mean of the values.
        rivals: number of settings that the better one was compared with, where it was chosen for being the best.
        of_family: as of `run_variance`.

    Returns:
        The effect; NaN if a run of a setting with a weight is missing or has values that are not finite.
    """
    settings = values[axis].values.tolist()
    c = np.array([weights.get(each, 0.0) for each in settings])
    samples = _samples(values, axis)
    usable = np.all([np.isfinite(x).all((1, 2, 3)) for x in samples], 0)
    if not all(x.size for x in samples) or not usable[c != 0].all():
        return Effect()
    c, samples = c[usable], [x[usable] for x in samples]
    per_image = [np.tensordot(c, x.mean((1, 2)), 1) for x in samples]
    means = [x.mean(-1) for x in samples]
    return Effect(
        estimate=_minus([float(each.mean()) for each in per_image]),
        images=sum(float(each.var(ddof=1)) / len(each) for each in per_image),
        runs=run_variance(_minus(means), c, of_family),
        repeats=max(means[0].shape[1:]),
        margin=margin * abs(float(samples[0].mean())),
        rivals=rivals,
    )


def effect_of_numbers(numbers: xr.DataArray, errors: xr.DataArray, axis: str, weights: Mapping[Any, float]) -> Effect:
    """The effect of settings on a number of each run, whose standard error over images is known.

    The errors over images are added as if those of different settings were independent, which makes them larger.
    """
    c = np.array([weights.get(each, 0.0) for each in numbers[axis].values.tolist()])
    y, se = (_runs(each.expand_dims("image"), axis)[..., 0] for each in (numbers, errors))
    y, se, c = y[c != 0], se[c != 0], c[c != 0]
    over_images = float((c**2) @ (se.mean((1, 2)) ** 2))
    return Effect(float(c @ y.mean((1, 2))), over_images, run_variance(y, c), max(y.shape[1:3]))


def run_variance(means: Array, weights: Array, of_family: bool = False) -> Variance:
    """The variance over runs of Σ_k c_k ȳ_k, from means ``[settings, seeds, training sets]``.

    Args:
        of_family: whether to ignore the differences of the contrast itself between seeds.

    Example:
        >>> means = np.array([[1.0, 2.0, 4.0], [1.0, 3.0, 2.0]])[..., None]
        >>> variance = run_variance(means, np.array([1.0, -1.0]))
        >>> differences = np.array([0.0, -1.0, 2.0])
        >>> bool(np.isclose(variance.value, differences.var(ddof=1) / 3)), variance.df
        (True, 2.0)
    """
    over_seeds, over_data = (_repeat_variance(means.mean(other), weights, of_family) for other in (2, 1))
    if not over_data.df:
        return over_seeds
    if not over_seeds.df:
        return over_data
    # Both contain the variance of single runs.
    residuals = _centred(means, 0, 1, 2)
    single = float((residuals**2).sum()) / _degrees(means) * float((weights**2).sum()) / means[0].size
    return combined(over_seeds, over_data, Variance(single, _degrees(means)))


def combined(one: Variance, other: Variance, shared: Variance) -> Variance:
    """The variance of the sum of two parts that both contain a third, with Satterthwaite's degrees of freedom.

    Example:
        >>> combined(Variance(1.0, 4), Variance(1.0, 4), Variance(0.0, 16))
        Variance(value=2.0, df=8.0)
    """
    total = max(one.value + other.value - shared.value, one.value, other.value)
    weight = sum(part.value**2 / part.df for part in (one, other, shared))
    fewest = min(one.df, other.df)
    return Variance(total, max(fewest, total**2 / weight) if weight else fewest)


def _repeat_variance(means: Array, weights: Array, of_family: bool) -> Variance:
    """The variance over repeats of Σ_k c_k ȳ_k, from means ``[settings, repeats]``."""
    repeats = means.shape[1]
    if repeats == 1:
        return _NO_RUNS
    squares = (_centred(means, 0, 1) ** 2).sum(1) / (repeats - 1)
    family = float(squares.sum()) / (len(means) - 1)
    variance = family * float(weights @ weights)
    if not of_family:
        # Unbiased variances of each setting.
        single = np.maximum(squares - family / len(means), 0) * len(means) / max(1, len(means) - 2)
        variance = max(variance, float(single @ weights**2), float((weights @ means).var(ddof=1)))
    return Variance(variance / repeats, _degrees(means))


def _centred(means: Array, *axes: int) -> Array:
    """The residuals of a table from the sums of its effects along fewer axes."""
    for axis in axes:
        means = means - means.mean(axis, keepdims=True)
    return means


def _degrees(means: Array) -> float:
    """The degrees of freedom of the residuals of a table."""
    return float(np.prod(np.array(means.shape) - 1))


class Lead(NamedTuple):
    """The setting with the lowest mean score, compared with all others.

    Attributes:
        best: the setting.
        closest: its closest rival, for which the interval of the lead ends lowest.
        tied: the settings that cannot be distinguished from it at the level `LEVEL`.
        effect: its lead over the closest rival.
    """

    best: Any
    closest: Any
    tied: list[Any]
    effect: Effect


def lead(score: xr.DataArray, axis: str, margin: float) -> Lead:
    """Multiple comparisons with the best (Hsu 1984): the setting with the lowest mean score, and what it beats.

    The variance over runs is that of all settings, which has the most degrees of freedom, if it is similar for all of
    them, and else that of the differences of two (`compared`). Of two settings, the better one leads by their
    difference, with a test on both sides.

    Args:
        score: values per image as in `effect`, of which lower ones are better.
    """
    names = score[axis].values.tolist()
    means = score.mean([dim for dim in score.dims if dim != axis]).values
    best = names[int(np.nanargmin(means))]
    others = [name for name in names if name != best]
    rivals = len(others) if len(others) > 1 else 0
    found = {
        name: effect(compared(score, axis, name, best), axis, {name: 1.0, best: -1.0}, margin, rivals, of_family=True)
        for name in others
    }
    closest = min(others, key=lambda name: (isfinite(found[name].estimate), found[name].low))
    tied = [name for name in others if not found[name].low > 0]
    return Lead(best, closest, tied, found[closest])


def compared(score: xr.DataArray, axis: str, *settings: Any) -> xr.DataArray:
    """The values of all settings if their variances over runs are similar, by Bartlett's test; else of these alone.

    The residuals of two settings are half the differences between them, with S − 1 degrees of freedom.

    Example:
        >>> same = np.random.default_rng(0).normal(size=(3, 5, 1))
        >>> score = xr.DataArray(same, {"prior": ["a", "b", "c"]}, ["prior", "seed", "image"])
        >>> other = score * xr.DataArray([1, 1, 1000], dims="prior")
        >>> compared(score, "prior", "a", "b").sizes["prior"], compared(other, "prior", "a", "b").sizes["prior"]
        (3, 2)
    """
    means = _minus([each.mean(-1) for each in _samples(score, axis)])
    runs = means[np.isfinite(means).all((1, 2))].reshape(-1, means[0].size)
    if len(runs) < 3 or not np.ptp(runs, 1).all():
        return score
    return score if stats.bartlett(*runs).pvalue > SIMILAR else score.sel({axis: list(settings)})


@lru_cache(maxsize=4096)
def critical_value(tail: float, rivals: int, df: float) -> float:
    """The one-sided critical value for the best of several settings: Dunnett's, with correlations of one half.

    With one rival, it is Student's t, or the normal quantile.

    Example:
        >>> round(critical_value(0.05, 2, 10), 2), round(critical_value(0.05, 1, 10), 3)
        (2.15, 1.812)
    """
    if rivals == 1:
        return float(stats.t.isf(tail, df))
    # The upper end is Bonferroni's value.
    return float(optimize.brentq(lambda value: exceeded(value, rivals, df) - tail, -1, stats.t.isf(tail / rivals, df)))


def exceeded(value: float, rivals: int, df: float) -> float:
    """The tail of which `critical_value` is the quantile: P(max_j (Z_j − Z_0) / √2 > value · √(χ²_df / df)).

    Example:
        >>> round(exceeded(2.15, 2, 10), 2), round(exceeded(1.812, 1, 10), 3)
        (0.05, 0.05)
    """
    if rivals == 1:
        return float(special.stdtr(df, -value))
    (z, over_z), (scales, over_scales) = _normal_nodes(), _scale_nodes(df)
    below = special.ndtr(sqrt(2) * value * scales[:, None] + z) ** rivals
    return max(0.0, 1 - float(over_scales @ below @ over_z))


@lru_cache
def _normal_nodes() -> tuple[Array, Array]:
    """Nodes and weights of a standard normal Z_0."""
    z, weights = hermegauss(80)
    return z, weights / weights.sum()


@lru_cache(maxsize=256)
def _scale_nodes(df: float) -> tuple[Array, Array]:
    """Nodes and weights of √(χ²_df / df), by the trapezoidal rule over the logarithm of χ²."""
    if not isfinite(df):
        return np.ones(1), np.ones(1)
    square = np.geomspace(stats.chi2.ppf(1e-13, df), stats.chi2.isf(1e-13, df), 150)
    weights = square * stats.chi2.pdf(square, df)
    return np.sqrt(square / df), weights / weights.sum()


def adjusted(p_values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """p-values of differences and of equivalence, adjusted so that all verdicts hold jointly (Holm 1979, Shaffer 1986).

    Of the two null hypotheses of a contrast, that there is no effect and that it exceeds the margin, at most one is
    true. So at step j of Holm's procedure on the 2m tests, at most min(m, 2m − j + 1) of those left are true.

    Example:
        >>> adjusted([(0.01, 1.0), (0.03, 0.9)])
        [(0.02, 1.0), (0.06, 1.0)]
    """
    flat = np.array(p_values, float).reshape(-1)
    tests, order = len(p_values), np.argsort(flat)
    factors = np.minimum(tests, len(flat) - np.arange(len(flat)))
    steps = np.maximum.accumulate(np.minimum(1.0, flat[order] * factors))
    found = np.empty_like(flat)
    found[order] = steps
    return [(float(different), float(equivalent)) for different, equivalent in found.reshape(-1, 2)]


def _without_padding(x: Array) -> Array:
    """Without images that are NaN in all runs."""
    return x[..., ~np.isnan(x).all((0, 1, 2))]


def _minus(terms: Sequence[T]) -> T:
    """The first term, minus the second if there is one."""
    return terms[0] if len(terms) == 1 else terms[0] - terms[1]


def _samples(values: xr.DataArray, axis: str) -> list[Array]:
    """Values as arrays ``[settings, seeds, training sets, images]``: those of training and of test images, or one."""
    splits = [values.sel(split=split) for split in ("train", "test")] if "split" in values.dims else [values]
    return [_without_padding(_runs(each, axis)) for each in splits]


def _runs(values: xr.DataArray, axis: str) -> Array:
    """Values as an array ``[settings, seeds, training sets, images]``."""
    missing = [dim for dim in REPEATED if dim not in values.dims]
    return values.expand_dims(missing).transpose(axis, *REPEATED, "image").values
