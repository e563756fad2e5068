"""What a worker of the cluster does: it trains and measures one cohort at a time, and reports its progress."""

import asyncio
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from distributed import Status, Worker, WorkerPlugin, get_worker

from pyrovae.build import user_sources
from pyrovae.runner.cohort import CohortPaths, cohort_label, run_cohort
from pyrovae.store.results import CohortResult
from pyrovae.study import Cohort, Study
from pyrovae.system import atomic
from pyrovae.system.device import find_device
from pyrovae.system.execution import Compile
from pyrovae.system.progress import ProgressTask
from pyrovae.system.provenance import process_name, software_versions
from pyrovae.training.trainer import Interrupted

#: Topic of the events with which workers report progress, and the least number of seconds between them.
TOPIC, INTERVAL = "pyrovae", 1.0
#: Seconds that a worker has to write its checkpoint after a request to stop.
STOP_TIMEOUT = 30.0
#: Held during training, which sets threads, validation and memory of the whole process.
_TRAINING = threading.Lock()
_LEAVING = {Status.closing, Status.closing_gracefully, Status.closed, Status.stopping, Status.stopped}


class IgnoreSigint(WorkerPlugin):
    """Lets the main process alone handle an interrupt, which also reaches the workers on its machine."""

    def setup(self, worker: Worker) -> None:
        """Called in the main thread of every worker, including replacements of dead ones."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Offer:
    """What a worker offers to a study.

    Attributes:
        versions: versions of all code that the numbers depend on.
        memory: bytes of main memory that it may still allocate.
        cuda: bytes of its GPU; 0 without one.
    """

    versions: str
    memory: float
    cuda: float


@dataclass(frozen=True)
class Task:
    """A cohort that is assigned to a worker.

    Attributes:
        folder: the folder of the study, on the main machine.
        paths: the files of the cohort there.
        holder: what `atomic.holder` reads there, by which a worker recognises whether it sees the same folder.
        token: identifies the events of this study.
    """

    study: Study
    cohort: Cohort
    folder: Path
    paths: CohortPaths
    holder: str
    device: str
    compile: Compile
    token: str


def versions(study: Study) -> str:
    """The versions that the numbers of a study depend on, including the user's modules."""
    own = {source for cohort in study.cohorts() for source in user_sources(cohort.shared)}
    return ", ".join([software_versions(), *sorted(own)])


def offer(study: Study, dask_worker: Worker) -> Offer:
    """What a worker offers; declared Dask resources GPU and MEMORY (bytes) take precedence over what is detected.

    Raises:
        ImportError: it lacks what the study needs.
    """
    declared = dask_worker.state.total_resources
    limit = dask_worker.memory_manager.memory_limit or psutil.virtual_memory().total
    memory = declared.get("MEMORY", limit - psutil.Process().memory_info().rss)
    cuda = 0
    if torch.cuda.is_available() and declared.get("GPU", 1) > 0:
        _, cuda = torch.cuda.mem_get_info()
    return Offer(versions(study), memory, cuda)


def train(task: Task) -> tuple[CohortResult, tuple[bytes, bytes] | None] | None:
    """Trains and measures a cohort.

    Returns:
        The results, and the contents of the checkpoint and of the details if the worker does not see the folder of the
        study; None if it was stopped.
    """
    here = get_worker()
    progress = RemoteProgress(here, task.token)
    try:
        with _exclusive(progress), _paths(task, here, progress) as paths:
            torch.set_num_threads(here.state.nthreads)
            device = find_device(task.device)
            result = run_cohort(task.study, task.cohort, paths, device, task.compile, progress)
            content = None
            if paths != task.paths:
                content = paths.checkpoint.read_bytes(), paths.details.read_bytes()
    except Interrupted:
        return None
    provenance = result.provenance | {"worker": f"{here.address}, {process_name()}"}
    return replace(result, provenance=provenance), content


async def idle(token: str) -> None:
    """Returns when a worker has stopped working on a study, or after `STOP_TIMEOUT`."""
    for _ in range(int(10 * STOP_TIMEOUT)):
        if RemoteProgress.active_token != token:
            return
        await asyncio.sleep(0.1)


class RemoteProgress:
    """Sends the progress of a worker to the main process, as events of Dask.

    Attributes:
        active_token: token of the study that this process works on.
    """

    active_token = ""

    def __init__(self, here: Worker, token: str) -> None:
        self.token = token
        self._worker = here
        self._key = here.get_current_task()
        self._due = 0.0

    def start(self, label: str, steps: int, done: int = 0) -> ProgressTask:
        """Starts a task of ``steps`` steps, ``done`` of which were done earlier."""
        self._due = 0.0
        self._send(start=label, steps=steps, done=done)
        return ProgressTask(self, label, steps, done)

    def report(self, task: ProgressTask, before: int) -> None:
        """Sends the number of steps done, at most once per `INTERVAL`."""
        if time.monotonic() > self._due:
            self._due = time.monotonic() + INTERVAL
            self._send(done=task.done)

    def note(self, text: str) -> None:
        """Sends a line to print."""
        self._send(note=text)

    def stop_requested(self) -> bool:
        """Whether the main process no longer waits for the cohort, or the worker is closing."""
        task = self._worker.state.tasks.get(self._key)
        return task is None or task.state != "executing" or self._worker.status in _LEAVING

    def _send(self, **event: Any) -> None:
        self._worker.log_event(TOPIC, {"token": self.token, "worker": self._worker.address, **event})


@contextmanager
def _exclusive(progress: RemoteProgress) -> Iterator[None]:
    """Waits until no other cohort trains in this process, such as one of another study on the same cluster."""
    while not _TRAINING.acquire(timeout=INTERVAL):
        if progress.stop_requested():
            raise Interrupted
    RemoteProgress.active_token = progress.token
    try:
        yield
    finally:
        RemoteProgress.active_token = ""
        _TRAINING.release()


@contextmanager
def _paths(task: Task, here: Worker, progress: RemoteProgress) -> Iterator[CohortPaths]:
    """The files of the cohort: in the folder of the study if the worker sees it, otherwise in a temporary folder."""
    if atomic.holder(task.folder) == task.holder:
        yield task.paths
        return
    progress.note(
        f"{cohort_label(task.study, task.cohort)}: {here.address} does not see {task.folder}, so a lost worker means "
        "that this cohort starts over"
    )
    with tempfile.TemporaryDirectory(dir=here.local_directory) as temporary:
        yield task.paths.in_folder(Path(temporary))
