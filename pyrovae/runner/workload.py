"""Work on the jobs of a study, which are split in halves if they do not fit into memory."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pyrovae.data.memory import check_kept
from pyrovae.errors import InputError, OutOfMemoryError
from pyrovae.runner.cohort import job_label
from pyrovae.runner.jobs import Job
from pyrovae.study import Study
from pyrovae.system import memory
from pyrovae.system.execution import Compile, Execution
from pyrovae.system.matmul import multiplied_by
from pyrovae.system.progress import Expected, ProgressReporter, StudyProgress

#: What is done to a job of a study in its folder, such as `run_job`.
Work = Callable[[Study, Job, Path, torch.device, Compile, ProgressReporter], None]


@dataclass(frozen=True)
class Workload:
    """The jobs of a study that are worked on.

    Attributes:
        expected: what a job takes.
        progress: where that is shown.
    """

    study: Study
    expected: Callable[[Job], Iterable[Expected]]
    progress: StudyProgress

    def label(self, job: Job) -> str:
        """What distinguishes a job from the others of the study."""
        return job_label(self.study, job.cohort)

    def note(self, job: Job, text: str) -> None:
        """Prints a line about a job."""
        self.progress.note(f"{self.label(job)}: {text}")

    def do(
        self, work: Work, jobs: Sequence[Job], folder: Path, device: torch.device, execution: Execution
    ) -> list[Job]:
        """Does something to jobs, in this process or on a cluster, and returns those that were given up.

        Args:
            folder: of the study.
            device: of this process.

        Raises:
            OutOfMemoryError: a single run does not fit into memory.
            InputError: the cluster is not what was expected.
        """
        if execution.scheduler is None:
            with multiplied_by(execution.matmul):
                self.for_each(
                    jobs, folder, lambda job: work(self.study, job, folder, device, execution.compile, self.progress)
                )
            return []
        try:
            from pyrovae.runner.cluster.dispatch import Dispatcher, connected
            from pyrovae.runner.cluster.worker import StudyWork
        except ImportError as error:
            raise InputError(
                f"scheduler: expected Dask, got {error}; install it with pip install 'pyrovae[dask]'"
            ) from error
        if not jobs:
            return []
        check_kept(folder, self.study.base.data)
        with connected(execution.scheduler) as client:
            return Dispatcher(client, self, StudyWork.of(work, self.study, folder, execution)).run(jobs)

    def check_done(self, given_up: Sequence[Job]) -> None:
        """Raises InputError if jobs were given up."""
        if given_up:
            raise InputError(
                f"{', '.join(map(self.label, given_up))}: given up, because workers died of it, perhaps for lack of "
                "memory; all else is done, and the same command tries it again"
            )

    def for_each(self, jobs: Sequence[Job], folder: Path, work: Callable[[Job], None]) -> None:
        """Calls ``work`` on each job, or on its halves, from where it was, if it runs out of memory.

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
            queue[:0] = self.halve(job.resumed(folder), reason)

    def halve(self, job: Job, reason: str) -> list[Job]:
        """Splits a job that ran out of memory.

        Raises:
            OutOfMemoryError: it has a single run.
        """
        if len(job.cohort.runs) == 1:
            raise OutOfMemoryError(f"{self.label(job)}: expected one run to fit into memory, but {reason}")
        self.note(job, f"continues in two halves, because {reason}")
        return self.divide(job)

    def divide(self, job: Job) -> list[Job]:
        """The halves of a job, in place of it."""
        self.progress.forget(self.label(job))
        halves = job.halves()
        self.progress.forecast.expect(part for half in halves for part in self.expected(half))
        return halves


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or else its type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
