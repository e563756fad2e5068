"""Work on the cohorts of a study, which are split in halves if they do not fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pyrovae.errors import OutOfMemoryError
from pyrovae.runner.cohort import cohort_label
from pyrovae.store.results import Results
from pyrovae.study import Cohort
from pyrovae.system import memory
from pyrovae.system.progress import StudyProgress


@dataclass(frozen=True)
class Workload:
    """The cohorts of a study that are worked on.

    Attributes:
        results: the results of the study.
        steps: progress steps that a cohort takes.
        progress: where they are shown.
    """

    results: Results
    steps: Callable[[Cohort], int]
    progress: StudyProgress

    def label(self, cohort: Cohort) -> str:
        """What distinguishes a cohort from the others of the study."""
        return cohort_label(self.results.study, cohort)

    def note(self, cohort: Cohort, text: str) -> None:
        """Prints a line about a cohort."""
        self.progress.note(f"{self.label(cohort)}: {text}")

    def for_each(self, cohorts: Sequence[Cohort], work: Callable[[Cohort], None]) -> None:
        """Calls ``work`` on each cohort, or on its halves if it runs out of memory.

        Raises:
            OutOfMemoryError: a single run does not fit.
        """
        queue = list(cohorts)
        while queue:
            cohort = queue.pop(0)
            try:
                work(cohort)
                continue
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # Outside of the except block, the error and its frames no longer hold tensors.
            memory.give_back_memory()
            queue[:0] = self.halve(cohort, reason)

    def halve(self, cohort: Cohort, reason: str) -> list[Cohort]:
        """Splits a cohort that ran out of memory, and its checkpoint if there is one.

        Raises:
            OutOfMemoryError: it has a single run.
        """
        if len(cohort.runs) == 1:
            raise OutOfMemoryError(f"{self.label(cohort)}: expected one run to fit into memory, but {reason}")
        halves = self.results.cut(cohort)
        self.progress.restart(self.label(cohort))
        self.progress.add_steps(sum(map(self.steps, halves)) - self.steps(cohort))
        self.note(cohort, f"continues in two halves, because {reason}")
        return halves


@contextmanager
def workload(
    results: Results, cohorts: Sequence[Cohort], steps: Callable[[Cohort], int], *, quiet: bool
) -> Iterator[Workload]:
    """A workload of some cohorts of a study, with its progress shown inside the block."""
    total = sum(map(steps, cohorts))
    with StudyProgress(total, quiet=quiet or not total) as progress:
        yield Workload(results, steps, progress)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or else its type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
