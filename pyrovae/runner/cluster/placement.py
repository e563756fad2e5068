"""Splits the cohorts of a study for the available workers, by cost and memory."""

import heapq
from collections.abc import Callable, Sequence

from pyrovae.study import Cohort

#: Overhead of a cohort: per step that of another run, and for compilation and measures that of so many steps of a run.
RUN_OVERHEAD, STEP_OVERHEAD = 1, 5000
#: Most pieces per worker, and the largest share of the time that a worthwhile split may leave.
PIECES_PER_WORKER, WORTHWHILE = 4, 0.95


def cost(cohort: Cohort, size: float) -> float:
    """The cost of training a cohort, in units that all cohorts of a study share.

    Args:
        size: cost of a step of one run, such as the bytes that it moves.
    """
    return size * (cohort.shared.steps * (len(cohort.runs) + RUN_OVERHEAD) + STEP_OVERHEAD)


def makespan(costs: Sequence[float], workers: int) -> float:
    """The time until all workers are done, if each takes the most expensive piece that is left whenever it is free.

    Example:
        >>> makespan([3, 3, 2, 2, 2], workers=2)
        7.0
    """
    busy_until = [0.0] * workers
    for each in sorted(costs, reverse=True):
        heapq.heapreplace(busy_until, busy_until[0] + each)
    return max(busy_until)


def split(
    cohorts: Sequence[Cohort], workers: int, cost: Callable[[Cohort], float], fits: Callable[[Cohort], bool]
) -> list[Cohort]:
    """Splits cohorts into pieces, the most expensive first.

    Cohorts that fit no worker are halved, and so are the most expensive ones while that saves time.

    Example:
        >>> from pyrovae import Study
        >>> cohorts = Study.of(name="mine", beta=[0.1, 1, 10, 100]).cohorts()
        >>> [piece.name for piece in split(cohorts, 2, lambda cohort: len(cohort.runs), lambda cohort: True)]
        ['000-0', '000-1']
        >>> [piece.name for piece in split(cohorts, 1, lambda cohort: 1, lambda cohort: len(cohort.runs) < 3)]
        ['000-0', '000-1']
    """
    pieces = [piece for cohort in cohorts for piece in _fitting(cohort, fits)]
    best = pieces
    while len(pieces) < PIECES_PER_WORKER * workers and any(len(piece.runs) > 1 for piece in pieces):
        highest = max(cost(piece) for piece in pieces if len(piece.runs) > 1)
        pieces = [
            half
            for piece in pieces
            for half in (piece.halves() if len(piece.runs) > 1 and cost(piece) == highest else [piece])
        ]
        time, best_time = (makespan([cost(piece) for piece in each], workers) for each in (pieces, best))
        if time <= WORTHWHILE * best_time:
            best = pieces
    return sorted(best, key=cost, reverse=True)


def _fitting(cohort: Cohort, fits: Callable[[Cohort], bool]) -> list[Cohort]:
    if len(cohort.runs) == 1 or fits(cohort):
        return [cohort]
    return [piece for half in cohort.halves() for piece in _fitting(half, fits)]
