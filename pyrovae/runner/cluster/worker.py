"""What a worker of a cluster does: one job at a time, in the folder of the study or in a copy of the files it needs."""

import asyncio
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from distributed import Reschedule, Status, Worker, WorkerPlugin, get_worker

from pyrovae import parts
from pyrovae.build import user_sources
from pyrovae.data.memory import attach
from pyrovae.errors import InputError, OutOfMemoryError
from pyrovae.runner.cohort import job_label
from pyrovae.runner.jobs import Job
from pyrovae.runner.workload import Work, first_line
from pyrovae.store.layout import RUNS
from pyrovae.study import Study
from pyrovae.system import atomic, memory
from pyrovae.system.device import find_device
from pyrovae.system.execution import Compile, Execution, Matmul
from pyrovae.system.matmul import multiplied_by
from pyrovae.system.progress import ProgressReporter, ProgressTask
from pyrovae.system.provenance import software_versions
from pyrovae.training.trainer import Interrupted

#: Contents of files by name, relative to the folder of the study.
Files = Mapping[str, bytes]
#: Topic of the events with which workers report progress, and the least number of seconds between them.
TOPIC, INTERVAL = "pyrovae", 1.0
#: Seconds that a worker has to write its checkpoint after a request to stop.
STOP_TIMEOUT = 30.0
#: Held by the job that works: it sets threads, validation and memory of the whole process.
_WORKING = threading.Lock()
_LEAVING = {Status.closing, Status.closing_gracefully, Status.closed, Status.stopping, Status.stopped}


class IgnoreSigint(WorkerPlugin):
    """Lets the main process alone handle an interrupt, which also reaches the workers on its machine."""

    def setup(self, worker: Worker) -> None:
        """Called in the main thread of every worker, including replacements of dead ones."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def versions(study: Study) -> set[str]:
    """The versions that the numbers of a study depend on, including the user's modules."""
    own = {source for cohort in study.cohorts() for source in user_sources(cohort.shared)}
    return {*software_versions().split(", "), *own, *parts.user_sources(study.measure.also)}


@dataclass(frozen=True)
class StudyWork:
    """What workers do for a study.

    Attributes:
        folder: of the study, on the main machine.
        holder: what `atomic.holder` reads there, by which a worker recognises whether it sees the same folder.
        versions: those of the main process.
    """

    function: Work
    study: Study
    folder: Path
    holder: str
    versions: set[str]
    device: str
    compile: Compile
    matmul: Matmul

    @classmethod
    def of(cls, function: Work, study: Study, folder: Path, execution: Execution) -> "StudyWork":
        """Work in the folder of a study, which this process has locked."""
        folder, holder = folder.resolve(), atomic.holder(folder)
        options = execution.device, execution.compile, execution.matmul
        return cls(function, study, folder, holder, versions(study), *options)

    def check(self, dask_worker: Worker) -> bool:
        """Whether a worker sees the folder of the study.

        Raises:
            InputError: it has other versions.
        """
        try:
            got = versions(self.study)
        except Exception as error:
            raise InputError(f"worker {dask_worker.address}: {not_installed(error)}") from error
        if got != self.versions:
            ours, theirs = (", ".join(sorted(each)) for each in (self.versions - got, got - self.versions))
            raise InputError(
                f"worker {dask_worker.address}: expected {ours} as here, got {theirs}; install the same versions there"
            )
        return atomic.holder(self.folder) == self.holder

    def do(self, job: Job, files: Files | None) -> Files | None:
        """Does a job on a worker.

        Args:
            files: what the job continues from; None if all workers see the folder of the study.

        Returns:
            The files written, unless they are in the folder of the study; None if the worker is busy with another job.

        Raises:
            Reschedule: the worker leaves, and another one is to continue.
            InputError: as the function, or the worker has other versions.
            OutOfMemoryError: as the function.
        """
        here = get_worker()
        shared = self.check(here)
        if not _WORKING.acquire(timeout=INTERVAL):
            return None
        try:
            torch.set_num_threads(here.state.nthreads)
            return self._do(job, files, shared, here)
        except Interrupted:
            raise Reschedule from None
        except Exception as error:
            reason, out_of_memory = first_line(error), memory.is_out_of_memory(error)
            if not out_of_memory and not isinstance(error, InputError):
                raise
        finally:
            _WORKING.release()
        # Outside of the except block, the error and its frames no longer hold tensors.
        memory.give_back_memory()
        raise OutOfMemoryError(reason) if out_of_memory else InputError(f"worker {here.address}: {reason}")

    def _do(self, job: Job, files: Files | None, shared: bool, here: Worker) -> Files:
        progress = RemoteProgress(here)
        if shared:
            self._work(job, self.folder, progress)
            return {}
        if files is None:
            raise InputError(f"expected to see {self.folder}, as the workers do that were there before")
        progress.note(f"{self._label(job)}: starts over if {here.address} is lost, which does not see {self.folder}")
        with tempfile.TemporaryDirectory(dir=here.local_directory) as temporary:
            folder = Path(temporary)
            for name, content in files.items():
                atomic.write(folder / name, content)
            self._work(job, folder, progress)
            paths = [path for path in (folder / RUNS).rglob("*") if path.is_file()]
            now = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return {name: content for name, content in now.items() if content != files.get(name)}

    def _work(self, job: Job, folder: Path, progress: ProgressReporter) -> None:
        """Does a job in a folder, once no worker is left that does it, such as one that was cut off and replaced."""
        noted = set[str]()

        def wait(holder: str) -> bool:
            if holder not in noted:
                noted.add(holder)
                progress.note(f"{self._label(job)}: waits for {holder}, which still works on it; if it hangs, stop it")
            return not progress.stop_requested()

        with atomic.exclusive(folder / ".locks" / job.cohort.key, wait) as acquired:
            if not acquired:
                raise Interrupted
            attach(folder)
            device = find_device(self.device)
            with multiplied_by(self.matmul):
                self.function(self.study, job.resumed(folder), folder, device, self.compile, progress)

    def _label(self, job: Job) -> str:
        return job_label(self.study, job.cohort)


def not_installed(error: BaseException) -> str:
    """What is wrong where the code of a study cannot be imported."""
    return f"expected what the study needs to be installed, got {type(error).__name__}: {first_line(error)}"


async def idle(keys: str, dask_worker: Worker) -> None:
    """Returns when a worker has stopped the tasks whose keys begin like this, or after `STOP_TIMEOUT`."""
    for _ in range(int(10 * STOP_TIMEOUT)):
        if not any(str(task.key).startswith(keys) for task in dask_worker.state.executing):
            return
        await asyncio.sleep(0.1)


class RemoteProgress:
    """Sends the progress of a job to the main process, as events of Dask."""

    def __init__(self, here: Worker) -> None:
        self._worker = here
        self._key = here.get_current_task()
        self._due = 0.0

    def start(self, label: str, steps: int, done: int = 0, phase: str = "train") -> ProgressTask:
        """Starts a task of ``steps`` steps, ``done`` of which were done earlier."""
        self._due = 0.0
        task = ProgressTask(self, label, steps, done, phase)
        self.report(task)
        return task

    def report(self, task: ProgressTask) -> None:
        """Sends the number of steps done, at most once per `INTERVAL`, and at the end."""
        if time.monotonic() > self._due or task.done == task.steps:
            self._due = time.monotonic() + INTERVAL
            self._send(label=task.label, phase=task.phase, steps=task.steps, done=task.done, numbers=task.numbers)

    def note(self, text: str) -> None:
        """Sends a line to print."""
        self._send(note=text)

    def stop_requested(self) -> bool:
        """Whether the main process no longer waits for the job, or the worker leaves."""
        task = self._worker.state.tasks.get(self._key)
        return task is None or task.state != "executing" or self._worker.status in _LEAVING

    def _send(self, **event: Any) -> None:
        self._worker.log_event(TOPIC, {"key": self._key, "worker": self._worker.address, **event})
