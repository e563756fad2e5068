"""Assigns the cohorts of a study to the workers of a Dask cluster, and records their results."""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from distributed import CancelledError, Client, Future, KilledWorker, LocalCluster

from pyrovae.errors import InputError, OutOfMemoryError
from pyrovae.runner.cluster import placement, worker
from pyrovae.runner.cluster.worker import INTERVAL, TOPIC, Offer, Task
from pyrovae.runner.cohort import CohortPaths
from pyrovae.runner.setup import MEMORY_SHARE
from pyrovae.runner.workload import Workload, first_line
from pyrovae.study import Cohort
from pyrovae.system import atomic, memory
from pyrovae.system.execution import Execution
from pyrovae.system.progress import ProgressTask

#: Number of workers that may die of a cohort between two checkpoints before it is given up.
MOST_DEATHS = 3
#: Where a local cluster listens, so that other machines cannot connect.
LOOPBACK = "127.0.0.1"


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the cluster at an address, or of a local one that ends with the block.

    Args:
        address: "local", an address such as tcp://host:8786, or the path of a scheduler file.

    Raises:
        InputError: there is no scheduler.
    """
    log = logging.getLogger("distributed")
    level = log.level
    log.setLevel(logging.CRITICAL)  # our own notes report what happens to workers
    try:
        with _local_client() if address == "local" else _remote_client(address) as client:
            yield client
    finally:
        log.setLevel(level)


@contextmanager
def _local_client() -> Iterator[Client]:
    dashboard = f"{LOOPBACK}:0"
    with (
        LocalCluster(host=LOOPBACK, dashboard_address=dashboard, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(worker.IgnoreSigint())
        yield client


def _remote_client(address: str) -> Client:
    where = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        return Client(**where, set_as_default=False)  # xarray would lock files and compute with a default client
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
        raise InputError(
            f"scheduler: expected a Dask scheduler at {address}, got {first_line(error)}; start one with 'dask "
            "scheduler', or take --scheduler local"
        ) from error


class Dispatch:
    """A study on a cluster.

    Args:
        client: client of the cluster.
        work: the study and its progress; its folder is locked by this process.
        execution: device ("auto" is CUDA if a worker has it) and compilation.
        size: bytes that training takes for each run of a cohort.
    """

    def __init__(self, client: Client, work: Workload, execution: Execution, size: Callable[[Cohort], float]) -> None:
        self._client, self._work, self._size = client, work, size
        self._results, self._progress = work.results, work.progress
        self._device, self._compile = execution.device, execution.compile
        self._token = uuid.uuid4().hex
        self._holder = atomic.holder(self._results.folder)
        self._versions = worker.versions(self._results.study)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()  # calls that other threads leave to this one
        self._offers: dict[str, Offer] = {}
        self._refused: set[str] = set()
        self._queue: list[Cohort] = []
        self._running: dict[str, tuple[Cohort, Future]] = {}
        self._deaths: Counter[str] = Counter()
        self._reached: dict[str, int] = {}
        self._given_up: list[Cohort] = []
        self._tasks: dict[str, ProgressTask] = {}
        self._next_look, self._last_note = 0.0, ""

    def run(self, cohorts: Sequence[Cohort]) -> list[Cohort]:
        """Trains and measures cohorts, and returns those that were given up because their workers died.

        Raises:
            InputError: a worker has other versions, or the connection to the scheduler is lost.
            OutOfMemoryError: a single run fits no worker.
        """
        self._client.subscribe_topic(TOPIC, lambda event: self._inbox.put(partial(self._show, event[1])))
        try:
            self._begin(cohorts)
            while self._queue or self._running:
                self._update_workers()
                self._assign()
                self._process_events()
        finally:
            self._stop()
        return self._given_up

    def _begin(self, cohorts: Sequence[Cohort]) -> None:
        """Waits for the first workers, and splits the study for them."""
        self._check_scheduler()
        while not self._offers:
            self._update_workers(strict=True)
            if not self._offers:
                self._note_once("waits for workers")
                time.sleep(INTERVAL)
        if self._device == "auto":
            self._device = "cuda" if any(offer.cuda for offer in self._offers.values()) else "cpu"
        if not self._suitable():
            raise InputError("device: expected workers that have CUDA, got none; use --device cpu")
        self._queue = placement.split(cohorts, len(self._suitable()), self._cost, self._fits_some)
        self._check_memory()
        names = {piece.name for piece in self._queue}
        for cohort in cohorts:
            self._split(cohort, names)
        self._progress.add_steps(sum(map(self._work.steps, self._queue)) - sum(map(self._work.steps, cohorts)))
        parts = f", for which the cohorts are split into {len(names)} parts" if len(names) > len(cohorts) else ""
        self._progress.note(f"workers: {len(self._suitable())}{parts}")

    def _check_scheduler(self) -> None:
        """Raises InputError if the scheduler, which unpickles tasks, cannot import what the study needs."""
        try:
            self._client.run_on_scheduler(worker.versions, self._results.study)
        except Exception as error:
            raise InputError(
                "scheduler: expected what the study needs to be installed there, too, got "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error

    def _check_memory(self) -> None:
        for piece in self._queue:
            if not self._fits_some(piece):
                needed, most = self._needed(piece), max(map(self._memory, self._suitable()))
                raise OutOfMemoryError(
                    f"{self._work.label(piece)}: expected workers with {needed / 2**30:,.1f} GB of memory for one run, "
                    f"got at most {most / 2**30:,.1f} GB"
                )

    def _split(self, cohort: Cohort, names: set[str]) -> None:
        """Splits a cohort, and its checkpoint if there is one, into the parts with these names."""
        if cohort.name not in names:
            for half in self._results.cut(cohort):
                self._split(half, names)

    def _update_workers(self, strict: bool = False) -> None:
        """Notices which workers have joined and left. Workers with other versions get no work.

        Raises:
            InputError: there are such workers, and ``strict`` is true.
        """
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + INTERVAL
        if self._client.status != "running":
            raise self._connection_lost()
        try:
            known = self._known_workers()
            gone = {address: self._left_in_order(address) for address in self._running.keys() - known.keys()}
            alive = [address for address, info in known.items() if info["status"] == "running"]
            new = [address for address in alive if address not in self._offers and address not in self._refused]
            offers = self._client.run(worker.offer, self._results.study, workers=new, on_error="return") if new else {}
        except OSError:  # the scheduler is too busy to answer, and is asked again
            return
        for address, in_order in gone.items():
            (self._on_worker_leaving if in_order else self._on_worker_lost)(address)
        self._offers = {address: offer for address, offer in self._offers.items() if address in alive}
        for address, offer in offers.items():
            self._consider(address, offer, strict)

    def _consider(self, address: str, offer: Offer | BaseException, strict: bool) -> None:
        """Accepts or refuses a new worker."""
        if isinstance(offer, OSError):  # it has left again
            return
        if not isinstance(offer, Offer):
            problem = f"expected what the study needs to be installed, got {type(offer).__name__}: {first_line(offer)}"
        elif not (problem := self._version_mismatch(offer)):
            self._offers[address] = offer
            return
        if strict:
            raise InputError(f"worker {address}: {problem}")
        self._refused.add(address)
        self._progress.note(f"worker {address} gets no work: {problem}")

    def _version_mismatch(self, offer: Offer) -> str:
        """How the versions of a worker differ from those of this process; empty if they agree."""
        ours, theirs = self._versions.split(", "), offer.versions.split(", ")
        expected, got = [each for each in ours if each not in theirs], [each for each in theirs if each not in ours]
        if not expected and not got:
            return ""
        return f"expected {', '.join(expected)} as here, got {', '.join(got)}; install the same versions there"

    def _left_in_order(self, address: str) -> bool:
        """Whether a worker that is gone has left in good order."""
        in_order = False
        for _, event in self._client.get_events(address):  # of all workers that ever had this address
            match event.get("action"):
                case "add-worker":
                    in_order = False
                case "closing-worker":
                    in_order = True
                case "remove-worker":
                    in_order = in_order or bool(event.get("expected"))
        return in_order

    def _known_workers(self) -> dict[str, Any]:
        """The scheduler's workers by address; `Client.scheduler_info` would hide that the scheduler did not answer."""
        scheduler: Any = self._client.scheduler
        return self._client.sync(scheduler.identity, n_workers=-1)["workers"]

    def _assign(self) -> None:
        """Assigns the most expensive cohorts first, each to the free worker with the least memory that suffices."""
        free = sorted(
            (self._memory(offer), address)
            for address, offer in self._offers.items()
            if address not in self._running and self._is_suitable(offer)
        )
        for cohort in list(self._queue):
            address = next((address for memory, address in free if self._needed(cohort) <= memory), None)
            if address is None:
                continue
            free = [each for each in free if each[1] != address]
            self._queue.remove(cohort)
            self._running[address] = cohort, self._submit(cohort, address)
        if self._queue and not self._running:
            self._note_once("waits for workers" if not self._offers else "waits for workers with enough memory")

    def _submit(self, cohort: Cohort, address: str) -> Future:
        results = self._results
        task = Task(
            results.study,
            cohort,
            results.folder.resolve(),
            CohortPaths.of(results, cohort),
            self._holder,
            self._device,
            self._compile,
            self._token,
        )
        future = self._client.submit(
            worker.train,
            task,
            key=f"pyrovae-{self._token}-{cohort.name}-{uuid.uuid4().hex}",
            workers=[address],
            allow_other_workers=False,
            pure=False,
        )
        future.add_done_callback(partial(self._fetch, address))
        return future

    def _fetch(self, address: str, future: Future) -> None:
        """Fetches the results of a cohort, in a thread of the client."""
        error, result = None, None
        try:
            result = future.result()
        except (Exception, CancelledError) as raised:
            error = raised
        self._inbox.put(partial(self._on_done, address, future, result, error))

    def _process_events(self) -> None:
        """Processes the events of workers, after waiting a while for the first one."""
        with suppress(Empty):
            self._inbox.get(timeout=INTERVAL)()
            while True:
                self._inbox.get_nowait()()

    def _show(self, event: dict[str, Any]) -> None:
        """Shows the progress of a cohort, if it belongs to this study and still runs on that worker."""
        address = event.get("worker", "")
        if event.get("token") != self._token or address not in self._running:
            return
        if "note" in event:
            self._progress.note(event["note"])
        elif "start" in event:
            self._tasks[address] = self._progress.start(event["start"], event["steps"], event["done"])
            name = self._running[address][0].name
            if event["done"] > self._reached.get(name, 0):  # it reached another checkpoint
                self._reached[name], self._deaths[name] = event["done"], 0
        elif "done" in event:
            self._tasks[address].update(event["done"])

    def _on_done(self, address: str, future: Future, result: Any, error: BaseException | None) -> None:
        """Records the results of a cohort, or handles its failure."""
        if self._running.get(address, (None, None))[1] is not future:
            return  # it runs elsewhere by now
        if isinstance(error, KilledWorker):
            self._on_worker_lost(address)
            return
        cancelled = isinstance(error, CancelledError)
        if (error is None and result is None) or (cancelled and self._client.status == "running"):
            self._on_worker_leaving(address)
            return
        cohort, _ = self._running.pop(address)
        self._tasks.pop(address, None)
        if error is None:
            self._record(cohort, *result)
        elif cancelled:
            raise self._connection_lost()
        elif memory.is_out_of_memory(error):
            self._queue[:0] = self._work.halve(cohort, first_line(error))
        elif isinstance(error, InputError):
            raise InputError(f"worker {address}: {error}") from error
        else:
            raise error

    def _record(self, cohort: Cohort, result: Any, content: tuple[bytes, bytes] | None) -> None:
        if content is not None:
            paths = CohortPaths.of(self._results, cohort)
            atomic.write(paths.checkpoint, content[0])
            atomic.write(paths.details, content[1])
        self._results.record(self._results.tree, cohort, result)

    def _on_worker_leaving(self, address: str) -> None:
        """A worker has stopped in good order: another one gets its cohort."""
        cohort = self._withdraw(address)
        self._work.note(cohort, f"worker {address} leaves; another one continues")
        self._requeue(cohort)

    def _on_worker_lost(self, address: str) -> None:
        """A worker died: another one gets its cohort, unless too many have died of it."""
        cohort = self._withdraw(address)
        self._deaths[cohort.name] += 1
        if self._deaths[cohort.name] < MOST_DEATHS:
            self._work.note(cohort, f"worker {address} died; another one continues")
            self._requeue(cohort)
        else:
            self._work.note(cohort, f"given up, because {MOST_DEATHS} workers died while they worked on it")
            self._progress.restart(self._work.label(cohort))
            self._progress.add_steps(-self._work.steps(cohort))
            self._results.mark(cohort, "killed")
            self._given_up.append(cohort)

    def _withdraw(self, address: str) -> Cohort:
        """Takes its cohort from a worker."""
        cohort, future = self._running.pop(address)
        self._tasks.pop(address, None)
        future.cancel()
        return cohort

    def _requeue(self, cohort: Cohort) -> None:
        self._progress.restart(self._work.label(cohort))
        self._queue.insert(0, cohort)

    def _stop(self) -> None:
        """Lets the workers write their checkpoints, and waits for that."""
        futures = [future for _, future in self._running.values()]
        addresses = list(self._running)
        self._running.clear()
        if futures and self._client.status == "running":
            self._progress.note("stops; workers write their checkpoints")
            with suppress(OSError):  # the error that caused the stop matters, and not a scheduler lost meanwhile
                self._client.cancel(futures)
                self._client.run(worker.idle, self._token, workers=addresses, on_error="return")

    def _connection_lost(self) -> InputError:
        return InputError(
            "scheduler: expected it to answer, but the connection is lost; finished work is kept, and the same command "
            "continues it, with this scheduler, another or none"
        )

    def _cost(self, cohort: Cohort) -> float:
        return placement.cost(cohort, self._size(cohort))

    def _needed(self, cohort: Cohort) -> float:
        """Memory that a worker must offer for a cohort."""
        return len(cohort.runs) * self._size(cohort) / MEMORY_SHARE

    def _suitable(self) -> list[Offer]:
        return [offer for offer in self._offers.values() if self._is_suitable(offer)]

    def _is_suitable(self, offer: Offer) -> bool:
        return bool(offer.cuda) or self._device != "cuda"

    def _memory(self, offer: Offer) -> float:
        return offer.cuda if self._device == "cuda" else offer.memory

    def _fits_some(self, cohort: Cohort) -> bool:
        return any(self._needed(cohort) <= self._memory(offer) for offer in self._suitable())

    def _note_once(self, text: str) -> None:
        """Prints a line, unless it repeats the last one."""
        if text != self._last_note:
            self._progress.note(text)
        self._last_note = text
