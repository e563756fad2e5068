"""What a worker of the cluster does: it trains and measures one cohort at a time, and says how it gets on."""

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

from pyrovae.build import own_sources
from pyrovae.runner import cohort as work
from pyrovae.runner.cohort import CohortPaths
from pyrovae.store.results import CohortResult
from pyrovae.study.grid import Cohort, Study
from pyrovae.system import atomic
from pyrovae.system.device import find_device
from pyrovae.system.provenance import process_name, software_versions
from pyrovae.training.trainer import Compile, Interrupted

#: Under this topic workers tell how they get on, and so many seconds apart at the least.
TOPIC, INTERVAL = "pyrovae", 1.0
#: Seconds that a worker has to write its checkpoint when it is to stop.
PATIENCE = 30.0
#: Training needs the whole process: threads, validation and memory are set for it.
_FREE = threading.Lock()
_LEAVING = {Status.closing, Status.closing_gracefully, Status.closed, Status.stopping, Status.stopped}


class IgnoreSigint(WorkerPlugin):
    """Has a worker on this machine let the process at home decide what an interrupt means, which reaches both."""

    def setup(self, worker: Worker) -> None:
        """Is called in the main thread of a worker, also of one that takes the place of one that died."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Offer:
    """What a worker has to offer to a study.

    Attributes:
        versions: of all code that the numbers depend on.
        memory: bytes that it may still take.
        cuda: bytes of its GPU; 0 if it has none.
    """

    versions: str
    memory: float
    cuda: float


@dataclass(frozen=True)
class Task:
    """A cohort, as it is handed to a worker.

    Attributes:
        folder: of the study, on the machine that hands it out.
        places: where its files are there.
        holder: what `atomic.holder` reads there, by which a worker knows whether it sees the same folder.
        token: tells what is said of this study from what is said of others.
    """

    study: Study
    cohort: Cohort
    folder: Path
    places: CohortPaths
    holder: str
    device: str
    compile: Compile
    token: str


def versions(study: Study) -> str:
    """The versions that the numbers of a study depend on, with code of the user's own."""
    own = {source for cohort in study.cohorts() for source in own_sources(cohort.shared)}
    return ", ".join([software_versions(), *sorted(own)])


def offer(study: Study, dask_worker: Worker) -> Offer:
    """What a worker has to offer; declared resources GPU and MEMORY, in bytes, count for more than what is found.

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
        What came of it, and its checkpoint and its details where they are not in the folder of the study yet; None if
        it was asked to stop.
    """
    here = get_worker()
    told = _Telling(here, task)
    try:
        with _exclusive(told), _paths(task, here, told) as places:
            torch.set_num_threads(here.state.nthreads)
            device = find_device(task.device)
            outcome = work.run(task.study, task.cohort, places, device, task.compile, told)
            provenance = outcome.provenance | {"worker": f"{here.address}, {process_name()}"}
            content = None
            if places != task.places:
                content = places.checkpoint.read_bytes(), places.details.read_bytes()
    except Interrupted:
        return None
    return replace(outcome, provenance=provenance), content


async def idle(token: str) -> None:
    """Returns once a worker has let go of a study, or has had time enough to."""
    for _ in range(int(10 * PATIENCE)):
        if _Telling.token != token:
            return
        await asyncio.sleep(0.1)


class _Telling:
    """Tells the machine at home how a cohort gets on, and the cohort whether it is still wanted there.

    Attributes:
        token: of the study that this process is at work on.
    """

    token = ""

    def __init__(self, here: Worker, task: Task) -> None:
        self._worker = here
        self._key = here.get_current_task()
        self._of = {"token": task.token, "worker": here.address}
        self._due = 0.0
        self._label = ""

    def begin(self, label: str, steps: int, done: int) -> "_Telling":
        """A piece of work begins."""
        self._label, self._due = label, 0.0
        self._tell(begin=label, steps=steps, done=done)
        return self

    def stepped(self, step: int) -> None:
        """``step`` steps are done."""
        if time.monotonic() > self._due:
            self._due = time.monotonic() + INTERVAL
            self._tell(label=self._label, step=step)

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._tell(note=text)

    def stopped(self) -> bool:
        """Whether nobody waits for the cohort any more, or the worker leaves."""
        task = self._worker.state.tasks.get(self._key)
        return task is None or task.state != "executing" or self._worker.status in _LEAVING

    def _tell(self, **what: Any) -> None:
        self._worker.log_event(TOPIC, self._of | what)


@contextmanager
def _exclusive(told: _Telling) -> Iterator[None]:
    """Waits until the process is free of cohorts, such as those of another study on the same cluster."""
    while not _FREE.acquire(timeout=INTERVAL):
        if told.stopped():
            raise Interrupted
    _Telling.token = told._of["token"]
    try:
        yield
    finally:
        _Telling.token = ""
        _FREE.release()


@contextmanager
def _paths(task: Task, here: Worker, told: _Telling) -> Iterator[CohortPaths]:
    """Where the files are: in the folder of the study if it is seen from here, or else in one that goes again."""
    if atomic.holder(task.folder) == task.holder:
        yield task.places
        return
    told.note(
        f"{work.label(task.study, task.cohort)}: {here.address} does not see {task.folder}, so that nothing is left of "
        "the cohort if the worker is lost"
    )
    with tempfile.TemporaryDirectory(dir=here.local_directory) as own:
        yield task.places.elsewhere(Path(own))
