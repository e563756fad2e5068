"""Hands the cohorts of a study out to the workers of a Dask cluster, and writes down what comes back."""

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
from pyrovae.runner import cohort as work
from pyrovae.runner.cluster import placement, worker
from pyrovae.runner.cluster.worker import INTERVAL, TOPIC, Offer, Task
from pyrovae.runner.cohort import MEMORY_SHARE
from pyrovae.store.results import Results
from pyrovae.study.grid import Cohort
from pyrovae.system import atomic, memory
from pyrovae.system.progress import Piece, Watch
from pyrovae.training.trainer import Compile

#: Workers that may die of a cohort before it is given up, unless it got from one checkpoint to the next meanwhile.
MOST_DEATHS = 3
#: Where a cluster for the purpose listens: on this machine alone.
LOOPBACK = "127.0.0.1"


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the cluster at an address, or of one of this machine's own that ends with the block.

    Args:
        address: "local", an address such as tcp://host:8786, or the path of a scheduler file.

    Raises:
        InputError: there is no scheduler.
    """
    log = logging.getLogger("distributed")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what happens to workers is told in our own words
    try:
        if address == "local":
            with (
                LocalCluster(
                    host=LOOPBACK, dashboard_address=f"{LOOPBACK}:0", silence_logs=logging.CRITICAL
                ) as cluster,
                Client(cluster, set_as_default=False) as client,
            ):
                client.register_plugin(worker.IgnoreSigint())
                yield client
            return
        # Not the default client: xarray would lock files and compute by it.
        where = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
        try:
            client = Client(**where, set_as_default=False)
        except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
            raise InputError(
                f"scheduler: expected a Dask scheduler at {address}, got {work.reason(error)}; start one with 'dask "
                "scheduler', or take --scheduler local"
            ) from error
        with client:
            yield client
    finally:
        log.setLevel(level)


class Dispatch:
    """A study on a cluster.

    Args:
        client: of the cluster.
        results: of the study; its folder is this process's.
        size: bytes that training takes for each run of a cohort.
        steps: that a cohort takes, for the progress.
        device: "auto" is CUDA if a worker has it.
        compile: as of `experiment.run`.
        watch: shows the progress.
    """

    def __init__(
        self,
        client: Client,
        results: Results,
        size: Callable[[Cohort], float],
        steps: Callable[[Cohort], int],
        device: str,
        compile: Compile,
        watch: Watch,
    ) -> None:
        self._client, self._results, self._watch = client, results, watch
        self._size, self._steps, self._device, self._compile = size, steps, device, compile
        self._token = uuid.uuid4().hex
        self._holder = atomic.holder(results.folder)
        self._versions = worker.versions(results.study)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()  # what other threads have this one do
        self._offers: dict[str, Offer] = {}
        self._refused: set[str] = set()
        self._queue: list[Cohort] = []
        self._running: dict[str, tuple[Cohort, Future]] = {}
        self._deaths: Counter[str] = Counter()
        self._reached: dict[str, int] = {}
        self._given_up: list[Cohort] = []
        self._pieces: dict[str, Piece] = {}
        self._looked, self._said = 0.0, ""

    def run(self, cohorts: Sequence[Cohort]) -> list[Cohort]:
        """Trains and measures cohorts, and returns those that were given up because their workers died.

        Raises:
            InputError: a worker has other versions, or the scheduler is lost; the same study can go on later.
            OutOfMemoryError: a single run fits no worker.
        """
        self._client.subscribe_topic(TOPIC, lambda event: self._inbox.put(partial(self._show, event[1])))
        try:
            self._begin(cohorts)
            while self._queue or self._running:
                self._look()
                self._assign()
                self._process_events()
        finally:
            self._stop()
        return self._given_up

    def _begin(self, cohorts: Sequence[Cohort]) -> None:
        """Waits for the first workers, and cuts the study into pieces for them."""
        try:
            self._client.run_on_scheduler(worker.versions, self._results.study)  # tasks pass through its hands
        except Exception as error:
            raise InputError(
                "scheduler: expected what the study needs to be installed there, too, got "
                f"{type(error).__name__}: {work.reason(error)}"
            ) from error
        while not self._offers:
            self._look(strict=True)
            if not self._offers:
                self._say_once("waits for workers")
                time.sleep(INTERVAL)
        if self._device == "auto":
            self._device = "cuda" if any(offer.cuda for offer in self._offers.values()) else "cpu"
        if not self._suited():
            raise InputError("device: expected workers that have CUDA, got none; use --device cpu")
        self._queue = placement.cut(cohorts, len(self._suited()), self._cost, self._fits_some)
        for piece in self._queue:
            if not self._fits_some(piece):
                needed, most = self._needed(piece), max(map(self._memory, self._suited()))
                raise OutOfMemoryError(
                    f"{work.label(self._results.study, piece)}: expected workers with {needed / 2**30:,.1f} GB of "
                    f"memory for one run, got at most {most / 2**30:,.1f} GB"
                )
        names = {piece.name for piece in self._queue}
        for cohort in cohorts:
            self._divide(cohort, names)
        self._watch.more(sum(map(self._steps, self._queue)) - sum(map(self._steps, cohorts)))
        cut = f", for which the cohorts are cut into {len(names)} parts" if len(names) > len(cohorts) else ""
        self._watch.note(f"workers: {len(self._suited())}{cut}")

    def _divide(self, cohort: Cohort, names: set[str]) -> None:
        """Cuts a cohort, and the checkpoint that it may have, until its parts are those of these names."""
        if cohort.name not in names:
            for half in self._results.cut(cohort):
                self._divide(half, names)

    def _look(self, strict: bool = False) -> None:
        """Sees which workers have come and gone. Those with other versions are told, and get nothing to do.

        Raises:
            InputError: there are such workers, and the study has not begun.
        """
        if time.monotonic() < self._looked + INTERVAL:
            return
        self._looked = time.monotonic()
        if self._client.status != "running":
            raise self._lost()
        try:
            known = self._known()
            gone = {address: self._left(address) for address in self._running.keys() - known.keys()}
            alive = [address for address, told in known.items() if told["status"] == "running"]
            new = [address for address in alive if address not in self._offers and address not in self._refused]
            found = self._client.run(worker.offer, self._results.study, workers=new, on_error="return") if new else {}
        except OSError:  # the scheduler is too busy to answer: it is asked again
            return
        for address, in_good_order in gone.items():
            (self._release if in_good_order else self._on_worker_lost)(address)
        self._offers = {address: offer for address, offer in self._offers.items() if address in alive}
        for address, offer in found.items():
            if isinstance(offer, OSError):
                continue  # it is gone again
            if problem := self._problem(offer):
                self._refused.add(address)
                if strict:
                    raise InputError(f"worker {address}: {problem}")
                self._watch.note(f"worker {address} gets nothing to do: {problem}")
            else:
                self._offers[address] = offer

    def _left(self, address: str) -> bool:
        """Whether a worker that is gone has left in good order."""
        good = False
        for _, event in self._client.get_events(address):  # of all workers that ever had the address
            match event.get("action"):
                case "add-worker":
                    good = False
                case "closing-worker":
                    good = True
                case "remove-worker":
                    good = good or bool(event.get("expected"))
        return good

    def _known(self) -> dict[str, Any]:
        """What the scheduler says of its workers, by address; `Client.scheduler_info` hides that it did not answer."""
        scheduler: Any = self._client.scheduler
        return self._client.sync(scheduler.identity, n_workers=-1)["workers"]

    def _problem(self, offer: Offer | BaseException) -> str:
        """What is wrong with a worker."""
        if not isinstance(offer, Offer):
            return f"expected what the study needs to be installed, got {type(offer).__name__}: {work.reason(offer)}"
        ours, theirs = (text.split(", ") for text in (self._versions, offer.versions))
        expected, got = ([each for each in one if each not in other] for one, other in ((ours, theirs), (theirs, ours)))
        if not expected and not got:
            return ""
        return f"expected {', '.join(expected)} as here, got {', '.join(got)}; install the same versions there"

    def _assign(self) -> None:
        """Gives every worker that is free a cohort that fits it: the costliest, to the one with the least memory."""
        free = sorted(
            (self._memory(offer), address)
            for address, offer in self._offers.items()
            if address not in self._running and self._suits(offer)
        )
        for cohort in list(self._queue):
            address = next((address for memory, address in free if self._needed(cohort) <= memory), None)
            if address is None:
                continue
            free = [each for each in free if each[1] != address]
            self._queue.remove(cohort)
            self._running[address] = cohort, self._submit(cohort, address)
        if self._queue and not self._running:
            self._say_once("waits for workers" if not self._offers else "waits for workers with enough memory")

    def _submit(self, cohort: Cohort, address: str) -> Future:
        results = self._results
        task = Task(
            results.study,
            cohort,
            results.folder.resolve(),
            work.CohortPaths.of(results, cohort),
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
        """Brings what came of a cohort here, in a thread of the client's."""
        error, result = None, None
        try:
            result = future.result()
        except (Exception, CancelledError) as raised:
            error = raised
        self._inbox.put(partial(self._take, address, future, result, error))

    def _process_events(self) -> None:
        """Takes in what workers have to say, waiting a while for the first of it."""
        with suppress(Empty):
            self._inbox.get(timeout=INTERVAL)()
            while True:
                self._inbox.get_nowait()()

    def _show(self, told: dict[str, Any]) -> None:
        """Shows how a cohort gets on, where it is one of this study that is still where it was."""
        address = told.get("worker", "")
        if told.get("token") != self._token or address not in self._running:
            return
        if "note" in told:
            self._watch.note(told["note"])
        elif "begin" in told:
            self._pieces[address] = self._watch.begin(told["begin"], told["steps"], told["done"])
            name = self._running[address][0].name
            if told["done"] > self._reached.get(name, 0):  # it got on since it was begun before
                self._reached[name], self._deaths[name] = told["done"], 0
        elif "step" in told:
            self._pieces[address].stepped(told["step"])

    def _take(self, address: str, future: Future, result: Any, error: BaseException | None) -> None:
        """Writes down what came of a cohort, or sees what is to become of it."""
        if self._running.get(address, (None, None))[1] is not future:
            return  # it is elsewhere by now
        if isinstance(error, KilledWorker):
            self._on_worker_lost(address)
            return
        if error is None and result is None:
            self._release(address)
            return
        if isinstance(error, CancelledError) and self._client.status == "running":  # by others, such as a restart
            self._release(address)
            return
        cohort, _ = self._running.pop(address)
        self._pieces.pop(address, None)
        if error is None:
            outcome, content = result
            if content is not None:
                places = work.CohortPaths.of(self._results, cohort)
                atomic.write(places.checkpoint, content[0])
                atomic.write(places.details, content[1])
            self._results.record(self._results.tree, cohort, outcome)
        elif isinstance(error, CancelledError):
            raise self._lost()
        elif memory.is_out_of_memory(error):
            self._queue[:0] = work.halves(self._results, cohort, work.reason(error), self._steps, self._watch)
        elif isinstance(error, InputError):
            raise InputError(f"worker {address}: {error}") from error
        else:
            raise error

    def _release(self, address: str) -> None:
        """A worker leaves, and has stopped in good order: its cohort goes elsewhere."""
        cohort, future = self._running.pop(address)
        self._pieces.pop(address, None)
        future.cancel()
        self._watch.note(f"{work.label(self._results.study, cohort)}: worker {address} leaves, so it goes to another")
        self._again(cohort)

    def _on_worker_lost(self, address: str) -> None:
        """A worker died: its cohort goes elsewhere, unless others died of it before."""
        cohort, future = self._running.pop(address)
        future.cancel()
        label = work.label(self._results.study, cohort)
        self._pieces.pop(address, None)
        self._deaths[cohort.name] += 1
        if self._deaths[cohort.name] < MOST_DEATHS:
            self._watch.note(f"{label}: worker {address} died, so it goes to another")
            self._again(cohort)
        else:
            self._watch.note(f"{label}: given up, because {MOST_DEATHS} workers died while they were at work on it")
            self._watch.drop(label)
            self._watch.more(-self._steps(cohort))
            self._results.mark(cohort, "killed")
            self._given_up.append(cohort)

    def _again(self, cohort: Cohort) -> None:
        """A cohort is to go on."""
        self._watch.drop(work.label(self._results.study, cohort))
        self._queue.insert(0, cohort)

    def _stop(self) -> None:
        """Has the workers write their checkpoints, and waits for that."""
        futures = [future for _, future in self._running.values()]
        addresses = list(self._running)
        self._running.clear()
        if futures and self._client.status == "running":
            self._watch.note("stops; workers write their checkpoints")
            with suppress(OSError):  # what made it stop is to be told, and not that the scheduler is gone meanwhile
                self._client.cancel(futures)
                self._client.run(worker.idle, self._token, workers=addresses, on_error="return")

    def _lost(self) -> InputError:
        return InputError(
            "scheduler: expected it to answer, but the connection is lost; what was done is kept, and the same command "
            "goes on, with this scheduler, another or none"
        )

    def _cost(self, cohort: Cohort) -> float:
        return placement.cost(cohort, self._size(cohort))

    def _needed(self, cohort: Cohort) -> float:
        """Memory that a worker has to offer for a cohort."""
        return len(cohort.runs) * self._size(cohort) / MEMORY_SHARE

    def _suited(self) -> list[Offer]:
        """The offers of those workers that can do the work."""
        return [offer for offer in self._offers.values() if self._suits(offer)]

    def _suits(self, offer: Offer) -> bool:
        return bool(offer.cuda) or self._device != "cuda"

    def _memory(self, offer: Offer) -> float:
        return offer.cuda if self._device == "cuda" else offer.memory

    def _fits_some(self, cohort: Cohort) -> bool:
        return any(self._needed(cohort) <= self._memory(offer) for offer in self._suited())

    def _say_once(self, text: str) -> None:
        """A line, unless it was the last that was said in this way."""
        if text != self._said:
            self._watch.note(text)
        self._said = text
