"""Which pieces a study is cut into for the workers at hand, by what it costs and what memory they have."""

import heapq
from collections.abc import Callable, Sequence

from pyrovae.study.grid import Cohort

#: What a cohort costs beside its steps: at every step as much as another run, and where it is compiled and measured as
#: much as so many steps of a run.
OTHER_RUNS, OTHER_STEPS = 1, 5000
#: There are no more pieces than so many for a worker, and no cut that leaves more than this share of the time.
MOST_PIECES, WORTH_IT = 4, 0.95


def cost(cohort: Cohort, size: float) -> float:
    """What training a cohort takes, in units that are the same for all cohorts of a study.

    Args:
        size: of a step of one run, such as the bytes that it moves.
    """
    return size * (cohort.shared.steps * (len(cohort.runs) + OTHER_RUNS) + OTHER_STEPS)


def makespan(costs: Sequence[float], workers: int) -> float:
    """When the last of the workers is done, each taking the costliest piece that is left as soon as it is free.

    Example:
        >>> makespan([3, 3, 2, 2, 2], workers=2)
        7.0
    """
    until = [0.0] * workers
    for each in sorted(costs, reverse=True):
        heapq.heapreplace(until, until[0] + each)
    return max(until)


def cut(
    cohorts: Sequence[Cohort], workers: int, cost: Callable[[Cohort], float], fits: Callable[[Cohort], bool]
) -> list[Cohort]:
    """The pieces, the costliest first: what fits no worker is halved, and what is costliest while that saves time.

    Example:
        >>> from pyrovae import Study
        >>> cohorts = Study.of(name="mine", beta=[0.1, 1, 10, 100]).cohorts()
        >>> [piece.name for piece in cut(cohorts, 2, lambda cohort: len(cohort.runs), lambda cohort: True)]
        ['000-0', '000-1']
        >>> [piece.name for piece in cut(cohorts, 1, lambda cohort: 1, lambda cohort: len(cohort.runs) < 3)]
        ['000-0', '000-1']
    """
    pieces = [piece for cohort in cohorts for piece in _fitting(cohort, fits)]
    best = pieces
    while len(pieces) < MOST_PIECES * workers and any(len(piece.runs) > 1 for piece in pieces):
        most = max(cost(piece) for piece in pieces if len(piece.runs) > 1)
        pieces = [
            part
            for piece in pieces
            for part in (piece.halves() if len(piece.runs) > 1 and cost(piece) == most else [piece])
        ]
        times = [makespan([cost(piece) for piece in each], workers) for each in (pieces, best)]
        if times[0] <= WORTH_IT * times[1]:
            best = pieces
    return sorted(best, key=cost, reverse=True)


def _fitting(cohort: Cohort, fits: Callable[[Cohort], bool]) -> list[Cohort]:
    if len(cohort.runs) == 1 or fits(cohort):
        return [cohort]
    return [piece for half in cohort.halves() for piece in _fitting(half, fits)]
