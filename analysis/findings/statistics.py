"""Effects with their intervals, and the rule that makes a verdict of them.

An effect is the mean difference per image between two settings, over the same images and the same seeds on both sides.
Its 95% interval combines two errors: over images, from normal quantiles for the differences averaged over seeds; and
over seeds, from Student's t. With a single seed it only covers the error over images.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

if TYPE_CHECKING:
    from pyrovae.analysis.findings.cells import StudyCells

Outcome = Literal["supported", "contradicted", "undecided"]
Over = Literal["images and seeds", "images only"]
#: Coverage of the intervals.
LEVEL = 0.95
#: Quantile of the upper end of a two-sided interval.
QUANTILE = (1 + LEVEL) / 2
#: Why a contrast has no effect.
UNFINISHED = "a run is missing or has diverged, or its distortion is not finite"


class Interval(NamedTuple):
    """An estimate and the half width of its interval."""

    estimate: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.estimate:.1f} ± {self.half_width:.1f}" if np.isfinite(self).all() else "(not measured)"


#: The effect of a contrast that cannot be computed.
UNKNOWN = Interval(np.nan, np.nan)


@dataclass(frozen=True)
class Contrast:
    """A difference of means that a finding predicts to be positive.

    Attributes:
        where: the cell of the grid, such as "depth 3".
        effect: mean difference per image and the half width of its interval; NaN if it is unknown.
        over: the sources of error that the interval covers.
        growth: growth of the prior gap, where the finding predicts it to be positive as well.
        note: why the effect is unknown.
        unit: unit of the effect.
        terms: values for the placeholders in the text of the finding.
    """

    where: str
    effect: Interval = UNKNOWN
    over: Over = "images only"
    growth: Interval | None = None
    note: str = ""
    unit: str = "nats"
    terms: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a study says of a finding: one of its contrasts, and how it turned out."""

    finding: "Finding"
    contrast: Contrast

    @property
    def text(self) -> str:
        """The finding with the values of this study."""
        return self.finding.text.format(**self.contrast.terms)

    @property
    def outcome(self) -> Outcome:
        """Supported if all intervals lie above zero, contradicted if any lies below, and undecided otherwise.

        Example:
            >>> finding = Finding(4, "a smaller β lowers test distortion", lambda study: ())
            >>> Verdict(finding, Contrast("", Interval(-3.0, 1.0))).outcome
            'contradicted'
            >>> Verdict(finding, Contrast("", Interval(3.0, 1.0), growth=Interval(0.5, 1.0))).outcome
            'undecided'
        """
        intervals = [each for each in (self.contrast.effect, self.contrast.growth) if each is not None]
        if any(estimate < -half_width for estimate, half_width in intervals):
            return "contradicted"
        return "supported" if all(estimate > half_width for estimate, half_width in intervals) else "undecided"


@dataclass(frozen=True)
class Finding:
    """A statement that a study can test.

    Attributes:
        number: its place among the findings of the paper; None for a question that the paper leaves open.
        text: the statement, with placeholders for the terms of its contrasts.
        contrasts: the cells of a study → the contrasts that should be positive, none if the study cannot test it.
    """

    number: int | None
    text: str
    contrasts: Callable[["StudyCells"], Iterable[Contrast]]

    def verdicts(self, study: "StudyCells") -> Iterator[Verdict]:
        """One verdict for each contrast."""
        return (Verdict(self, contrast) for contrast in self.contrasts(study))


def contrast(
    where: str,
    larger: xr.DataArray,
    smaller: xr.DataArray,
    *,
    quantile: float = QUANTILE,
    growth: Interval | None = None,
    unit: str = "nats",
    **terms: Any,
) -> Contrast:
    """The contrast of two settings, from values per seed and image of which the first should be larger."""
    sides = [each.transpose("seed", "image").values for each in (larger, smaller)]
    effect, over = paired_difference(sides[0], sides[1], quantile)
    return Contrast(where, effect, over, growth, "" if np.isfinite(effect.estimate) else UNFINISHED, unit, terms)


def paired_difference(
    larger: NDArray[np.float64], smaller: NDArray[np.float64], quantile: float = QUANTILE
) -> tuple[Interval, Over]:
    """Mean of ``larger − smaller``, both ``[seeds, images]``, with its interval and what the interval covers.

    Half width: √((z s_images / √n)² + (t s_seeds / √S)²), with z and t the quantiles of the normal distribution and
    of Student's t with S − 1 degrees of freedom. Images that are NaN in every run are padding and left out; any other
    value that is not finite makes the interval NaN.

    Example:
        >>> import numpy as np
        >>> interval, over = paired_difference(np.full((2, 5), 3.0), np.full((2, 5), 1.0))
        >>> print(interval, over)
        2.0 ± 0.0 images and seeds
    """
    padding = np.isnan(larger).all(0) & np.isnan(smaller).all(0)
    larger, smaller = larger[:, ~padding], smaller[:, ~padding]
    if not larger.size or not (np.isfinite(larger).all() and np.isfinite(smaller).all()):
        return UNKNOWN, "images only"
    difference = larger - smaller
    image_error = difference.mean(0).std(ddof=1) / np.sqrt(difference.shape[1])
    half_width = _half_width(image_error, difference.mean(1), quantile)
    return Interval(float(difference.mean()), half_width), "images only" if len(larger) == 1 else "images and seeds"


def growth_of_gap(cell: xr.Dataset, axis: str, here: Any, there: Any, quantile: float = QUANTILE) -> Interval:
    """How much larger the prior gap is here than there on an axis.

    The errors over images are added as if both sides were independent. As they are not, the interval is wide.
    """
    gaps, errors = (
        [cell[name].sel({axis: value}).values for value in (here, there)] for name in ("prior_gap", "prior_gap_se")
    )
    growth = gaps[0] - gaps[1]
    image_error = float(np.hypot(*(error.mean() for error in errors)))
    return Interval(float(growth.mean()), _half_width(image_error, growth, quantile))


def _half_width(image_error: float, seed_means: NDArray[np.float64], quantile: float) -> float:
    """Half width of an interval, from a standard error over images and one value per seed."""
    seeds = len(seed_means)
    images = stats.norm.ppf(quantile) * image_error
    if seeds == 1:
        return float(images)
    over_seeds = stats.t.ppf(quantile, seeds - 1) * seed_means.std(ddof=1) / np.sqrt(seeds)
    return float(np.hypot(images, over_seeds))
