"""Work on the jobs of a study, which are split in halves if they do not fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pyrovae.errors import OutOfMemoryError
from pyrovae.runner.cohort import job_label
from pyrovae.runner.jobs import Job
from pyrovae.study import Study
from pyrovae.system import memory
from pyrovae.system.progress import StudyProgress


@dataclass(frozen=True)
class Workload:
    """The jobs of a study that are worked on.

    Attributes:
        steps: progress steps that a job takes.
        progress: where they are shown.
    """

    study: Study
    steps: Callable[[Job], int]
    progress: StudyProgress

    def label(self, job: Job) -> str:
        """What distinguishes a job from the others of the study."""
        return job_label(self.study, job.cohort)

    def note(self, job: Job, text: str) -> None:
        """Prints a line about a job."""
        self.progress.note(f"{self.label(job)}: {text}")

    def for_each(self, jobs: Sequence[Job], work: Callable[[Job], None]) -> None:
        """Calls ``work`` on each job, or on its halves if it runs out of memory.

        Raises:
            OutOfMemoryError: a single run does not fit.
        """
        queue = list(jobs)
        while queue:
            job = queue.pop(0)
            try:
                work(job)
                continue
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # Outside of the except block, the error and its frames no longer hold tensors.
            memory.give_back_memory()
            queue[:0] = self.halve(job, reason)

    def halve(self, job: Job, reason: str) -> list[Job]:
        """Splits a job that ran out of memory.

        Raises:
            OutOfMemoryError: it has a single run.
        """
        if len(job.cohort.runs) == 1:
            raise OutOfMemoryError(f"{self.label(job)}: expected one run to fit into memory, but {reason}")
        halves = job.halves()
        self.progress.restart(self.label(job))
        self.progress.add_steps(sum(map(self.steps, halves)) - self.steps(job))
        self.note(job, f"continues in two halves, because {reason}")
        return halves


@contextmanager
def workload(study: Study, jobs: Sequence[Job], steps: Callable[[Job], int], *, quiet: bool) -> Iterator[Workload]:
    """A workload of some jobs of a study, with its progress shown inside the block."""
    total = sum(map(steps, jobs))
    with StudyProgress(total, quiet=quiet or not total) as progress:
        yield Workload(study, steps, progress)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or else its type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
