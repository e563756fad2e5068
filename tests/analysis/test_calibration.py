"""Simulated studies in which the truth is known: how often intervals contain it and verdicts contradict it.

The suite simulates a few hundred studies. The table of the documentation is from thousands:
``python -m pytest -n 0 -s -m long tests/analysis/test_calibration.py``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import xarray as xr
from numpy.random import Generator
from scipy import stats

from pyrovae.analysis.findings.statistics import Effect, effect, lead
from pyrovae.analysis.findings.verdicts import Contrast, Finding, Verdict, decide

FEW, MANY = 150, 2000
#: The probability that a test fails by chance, if a rate is as promised.
CHANCE = 1e-5
IMAGES = 24
FINDING = Finding(None, "", "", lambda study: ())


@dataclass(frozen=True)
class World:
    """Where studies come from; the standard deviation of runs is one.

    Attributes:
        settings, seeds, sets: the number of each; seeds and training sets are shared by all settings.
        spread: standard deviation of the logarithm of the standard deviation of the runs of each setting.
        images: standard error over images of the mean of each setting.
        data: standard deviation of the effect of a training set on each setting.
    """

    settings: int
    seeds: int
    sets: int = 1
    spread: float = 0.0
    images: float = 0.0
    data: float = 0.0

    def study(self, rng: Generator, means: Iterable[float] = ()) -> xr.DataArray:
        """Values per image, around 100 plus the means of the settings."""
        shape = (self.settings, self.seeds, self.sets, IMAGES)
        runs = np.exp(self.spread * rng.normal(size=(self.settings, 1, 1, 1)))
        values = runs * rng.normal(size=(*shape[:3], 1)) + self.data * rng.normal(size=(shape[0], 1, shape[2], 1))
        values = values + self.images * IMAGES**0.5 * rng.normal(size=(shape[0], 1, 1, IMAGES))
        values += 3 * rng.normal(size=(1, shape[1], 1, 1)) + 5 * rng.normal(size=IMAGES)
        values += 100 + np.array([*means, *[0] * self.settings])[: self.settings, None, None, None]
        return xr.DataArray(values, dims=("k", "seed", "data_seed", "image"), coords={"k": range(self.settings)})

    def __str__(self) -> str:
        sizes = f"{self.settings} settings × {self.seeds} seeds × {self.sets} training sets"
        return f"{sizes}, spread {self.spread:g}, images {self.images:g}, data {self.data:g}"


def rate(what: str, world: World, hits: list[bool]) -> tuple[int, int]:
    """The number of hits and of studies, shown with the standard error of their ratio."""
    share = float(np.mean(hits))
    print(f"{what}: {world}: {share:.1%} ± {(share * (1 - share) / len(hits)) ** 0.5:.1%}")
    return sum(hits), len(hits)


def assert_at_least(promised: float, hits: int, studies: int) -> None:
    assert hits >= stats.binom.ppf(CHANCE, studies, promised)


def assert_at_most(promised: float, hits: int, studies: int) -> None:
    assert hits <= stats.binom.isf(CHANCE, studies, promised)


def few_and_many(few: Iterable[World], many: Iterable[World]) -> pytest.MarkDecorator:
    """A few hundred studies of some worlds in the suite, and thousands of others in the long run."""
    cases = [pytest.param(world, FEW, id=f"few: {world}") for world in few]
    long = [pytest.param(world, MANY, id=f"many: {world}", marks=pytest.mark.long) for world in many]
    return pytest.mark.parametrize(("world", "studies"), [*cases, *long])


def contains_zero(found: Effect) -> bool:
    return abs(found.estimate) <= found.half_width


# Coverage


def coverage(world: World, studies: int) -> dict[str, tuple[int, int]]:
    """How often intervals contain the true value, which is zero: of a difference, and of a trend over all settings."""
    rng = np.random.default_rng(0)
    trend = dict(enumerate(np.linspace(1, -1, world.settings)))
    weights = {"difference": {0: 1.0, 1: -1.0}, "trend": trend}
    drawn = [world.study(rng) for _ in range(studies)]
    return {
        what: rate(f"coverage of a {what}", world, [contains_zero(effect(study, "k", each, 0)) for study in drawn])
        for what, each in weights.items()
        if what == "difference" or world.settings > 2
    }


SEVERAL = [World(*sizes, spread=spread) for spread, *sizes in product((0, 0.5, 1), (2, 4, 12), (2, 3, 5))]
WITH_IMAGES = [World(*sizes, spread=0.5, images=0.5) for sizes in product((2, 4, 12), (2, 3, 5))]
SETS = [
    World(settings, *repeats, spread=0.5, data=data)
    for settings, repeats, data in product((2, 4), ((1, 3), (3, 3), (5, 2)), (0, 1, 3))
]


@few_and_many([World(4, 3), World(2, 2, spread=1), World(7, 3, spread=0.5)], SEVERAL)
def test_intervals_contain_the_truth_in_about_95_percent(world: World, studies: int) -> None:
    for found in coverage(world, studies).values():
        assert_at_least(0.93, *found)
        assert_at_most(0.97, *found)


@few_and_many([World(2, 2, images=0.5), World(4, 3, images=1), World(4, 3, 3, data=2)], [*WITH_IMAGES, *SETS])
def test_intervals_with_several_sources_contain_the_truth_in_93_percent(world: World, studies: int) -> None:
    for found in coverage(world, studies).values():
        assert_at_least(0.93, *found)


# False verdicts


def verdicts(study: xr.DataArray, margin: float) -> Iterator[tuple[int, Verdict]]:
    """Joint verdicts on all settings compared with the first, on the best one, and on its lead over the first.

    Each verdict is given with the setting that it calls better than another one.
    """
    first, *others = study.k.values.tolist()
    found = [effect(study, "k", {other: 1, first: -1}, margin) for other in others]
    best = lead(study, "k", margin)
    better = [*[first] * len(found), best.best]
    found.append(best.effect)
    if best.best != first:
        found.append(effect(study, "k", {first: 1, best.best: -1}, margin, len(others)))
        better.append(best.best)
    contrasts = [(FINDING, Contrast("", each)) for each in found]
    return zip(better, decide(contrasts, ""), strict=True)


def any_difference(better: int, verdict: Verdict) -> bool:
    """Whether a verdict is false where all settings are equal."""
    return verdict.outcome in ("supported", "contradicted")


def not_the_first(better: int, verdict: Verdict) -> bool:
    """Whether a verdict is false where the first setting is better than all others by the margin."""
    best = better if verdict.outcome == "supported" else 0
    return verdict.outcome in ("no meaningful difference", "contradicted") or best != 0


def false_verdicts(
    what: str, world: World, studies: int, margin: float, effects: list[float], is_false: Callable[[int, Verdict], bool]
) -> tuple[int, int]:
    """How many studies give at least one false verdict."""
    rng = np.random.default_rng(1)
    drawn = (world.study(rng, effects) for _ in range(studies))
    return rate(what, world, [any(is_false(*each) for each in verdicts(study, margin)) for study in drawn])


EQUAL = [World(*sizes, spread=spread) for sizes in ((2, 3), (4, 2), (4, 3), (4, 5), (7, 3)) for spread in (0, 0.5, 1)]
EQUAL += [World(4, 3, images=0.5), World(4, 3, 3, data=1), World(4, 1)]


@few_and_many([World(2, 3), World(4, 3, spread=0.5)], EQUAL)
def test_five_percent_of_studies_find_a_difference_between_equal_settings(world: World, studies: int) -> None:
    found = false_verdicts("a difference between equal settings", world, studies, 0.03, [], any_difference)
    assert_at_most(0.05, *found)


@few_and_many([World(4, 5)], [World(*sizes, spread=spread) for sizes in ((4, 5), (7, 5)) for spread in (0, 0.5, 1)])
def test_five_percent_of_studies_dismiss_a_difference_of_the_margin(world: World, studies: int) -> None:
    share = 0.04
    margin = 100 * share / (1 - share * (world.settings - 1) / world.settings)
    effects = [0, *[margin] * (world.settings - 1)]
    found = false_verdicts("a difference of the margin dismissed", world, studies, share, effects, not_the_first)
    assert_at_most(0.05, *found)


# Power

LEAD = 3.0
POWER = {World(4, 3): 0.68, World(7, 3): 0.52, World(4, 5): 0.96, World(7, 5): 0.93}


@few_and_many([World(4, 3), World(7, 5)], POWER)
def test_leading_setting_is_named_as_often_as_promised(world: World, studies: int) -> None:
    rng = np.random.default_rng(2)
    found = [lead(world.study(rng, [-LEAD]), "k", 0) for _ in range(studies)]
    named = [each.best for each in found if not each.tied]
    assert set(named) == {0}
    assert_at_least(POWER[world], *rate("winner named", world, [not each.tied for each in found]))


@few_and_many([World(4, 3)], [World(4, 3), World(7, 3), World(7, 3, spread=0.5), World(7, 3, spread=1)])
def test_no_winner_is_named_among_equal_settings(world: World, studies: int) -> None:
    rng = np.random.default_rng(3)
    found = [lead(world.study(rng), "k", 0) for _ in range(studies)]
    assert_at_most(0.05, *rate("winner named among equal settings", world, [not each.tied for each in found]))
