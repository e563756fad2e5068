"""Has the jobs of a study done by the workers of a Dask cluster, which places them and replaces lost workers."""

import logging
import math
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import dask
from distributed import CancelledError, Client, Future, KilledWorker, wait
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.utils import silence_logging_cmgr

from pyrovae.data import memory
from pyrovae.errors import InputError, OutOfMemoryError
from pyrovae.runner.cluster import worker
from pyrovae.runner.cluster.worker import INTERVAL, TOPIC, StudyWork
from pyrovae.runner.jobs import Job
from pyrovae.runner.setup import MEMORY_SHARE
from pyrovae.runner.workload import Workload, first_line
from pyrovae.system import atomic
from pyrovae.system.progress import ProgressTask

#: Where a local cluster listens, so that other machines cannot connect.
LOOPBACK = "127.0.0.1"
#: Bytes that a worker takes without a job.
OWN_MEMORY = 2**29


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the cluster at an address, or of a local one that ends with the block.

    Args:
        address: "local", an address such as tcp://host:8786, or the path of a scheduler file.

    Raises:
        InputError: there is no scheduler.
    """
    quiet = {"distributed.admin.large-graph-warning-threshold": "1PB"}
    with silence_logging_cmgr(logging.CRITICAL), dask.config.set(quiet), _client(address) as client:
        if address == "local":
            client.register_plugin(worker.IgnoreSigint())
        yield client


def _check_guard() -> None:
    """Raises InputError in a script that each process of a worker, which imports it, would run again."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file and main.__spec__ is None and "__name__" not in Path(file).read_text(encoding="utf-8", errors="ignore"):
        raise InputError(
            f"scheduler: expected the call below 'if __name__ == \"__main__\":', got {file} without it, which "
            "each worker would run again"
        )


def _client(address: str) -> Client:
    where: dict[str, Any] = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    if address == "local":
        _check_guard()
        where = {"host": LOOPBACK, "dashboard_address": f"{LOOPBACK}:0", "silence_logs": logging.CRITICAL}
    try:
        if "address" in where:
            _check_port(address)
        # As a default client, xarray would lock files and compute with it.
        return Client(**where, set_as_default=False)
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
        raise InputError(
            f"scheduler: expected a Dask scheduler at {address}, got {first_line(error)}; start one with 'dask "
            "scheduler', or take --scheduler local"
        ) from error


def _check_port(address: str) -> None:
    """Raises ValueError if an address has no port: a client that finds none itself waits for a minute when it ends."""
    scheme, place = parse_address(address)
    if scheme in ("tcp", "tls"):
        parse_host_port(place)


class Dispatcher:
    """Jobs of a study on a cluster: no more at a time than workers, so that Dask blames each death on one job.

    Args:
        client: of the cluster.
        workload: the study and its progress.
        work: what is done to the jobs.
    """

    def __init__(self, client: Client, workload: Workload, work: StudyWork) -> None:
        self._client, self._workload, self._work = client, workload, work
        self._prefix, self._numbers = f"pyrovae-{uuid.uuid4().hex}", count()
        self._running: dict[Future, Job] = {}
        self._places: dict[str, str] = {}
        self._shown: dict[tuple[str, str, str], ProgressTask] = {}

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Has jobs done, and returns those that were given up because their workers died.

        Raises:
            InputError: a worker has other versions, a job raised it, or the connection to the scheduler is lost.
            OutOfMemoryError: a single run fits no worker.
        """
        try:
            return list(self._run(jobs))
        except (CancelledError, Exception) as error:
            if self._client.status == "running" and not isinstance(error, CancelledError):
                raise
            raise InputError(
                "scheduler: expected it to answer, but the connection is lost; finished work is kept, and the same "
                "command continues it, with this scheduler, another or none"
            ) from error
        finally:
            self._stop()

    def _run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        self._client.subscribe_topic(TOPIC, self._show)
        if not self._workers():
            self._workload.progress.note("waits for workers")
            self._client.wait_for_workers(1)
        shared, queue = self._check(), self._split(jobs)
        while queue or self._running:
            self._submit(queue, shared)
            if not self._running:
                time.sleep(INTERVAL)  # all workers are gone
                continue
            with suppress(TimeoutError), self._client.as_current():
                wait(list(self._running), timeout=INTERVAL, return_when="FIRST_COMPLETED")
            for future in [each for each in self._running if each.done()]:
                job = self._running.pop(future)
                if isinstance(future.exception(), KilledWorker):
                    yield self._given_up(job)
                else:
                    queue[:0] = self._finish(job, future)

    def _stop(self) -> None:
        """Lets the workers write their checkpoints, and waits for that."""
        if self._running and self._client.status == "running":
            self._workload.progress.note("stops; workers write their checkpoints")
            with suppress(OSError):  # the error that caused the stop matters, and not a scheduler lost meanwhile
                self._client.cancel(list(self._running))
                self._client.run(worker.idle, self._prefix, on_error="return")

    def _check(self) -> bool:
        """Whether all workers see the folder of the study, once their versions have been checked."""
        try:
            self._client.run_on_scheduler(worker.versions, self._work.study)  # it unpickles jobs
            return all(self._client.run(self._work.check).values())
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"scheduler and workers: {worker.not_installed(error)}") from error

    def _workers(self) -> list[dict[str, Any]]:
        """What the scheduler knows of its workers."""
        scheduler: Any = self._client.scheduler  # `Client.scheduler_info` would hide that it does not answer
        known = self._client.sync(scheduler.identity, n_workers=-1)["workers"].values()
        return [each for each in known if each["status"] == "running"]

    def _split(self, jobs: Sequence[Job]) -> list[Job]:
        """Halves the largest jobs while there are fewer than workers."""
        queue, workers = list(jobs), len(self._workers())
        while len(queue) < workers and _runs(largest := max(queue, key=_runs)) > 1:
            queue.remove(largest)
            queue += self._workload.divide(largest)
        return queue

    def _submit(self, queue: list[Job], shared: bool) -> None:
        """Submits the first jobs of the queue, no more than there are free workers."""
        workers = self._workers()
        most = memory_for_jobs(workers)
        while queue and len(self._running) < len(workers):
            job = queue.pop(0)
            needed = _runs(job) * job.size / MEMORY_SHARE
            if needed > most:
                gigabytes = (f"{each / 2**30:,.1f} GB" for each in (needed, most))
                queue[:0] = self._halves(job, "it would take {}, and workers have {}".format(*gigabytes))
                continue
            wanted = {"MEMORY": needed} | ({} if self._work.device == "cpu" else {"GPU": 1.0})
            takes = {name: each for name, each in wanted.items() if any(has["resources"].get(name) for has in workers)}
            data = [Path(memory.FILE)] if (self._work.folder / memory.FILE).exists() else []
            files = (
                None if shared else {str(file): (self._work.folder / file).read_bytes() for file in [*job.files, *data]}
            )
            key = f"{self._prefix}-{next(self._numbers)}"
            future = self._client.submit(self._work.do, job, files, key=key, resources=takes, pure=False)
            self._running[future] = job

    def _finish(self, job: Job, future: Future) -> list[Job]:
        """Writes the files of a job that is done, and returns what is left to do of it."""
        error = future.exception()
        if isinstance(error, OutOfMemoryError):
            return self._halves(job, first_line(error))
        if error is not None:
            raise error
        files = future.result()
        if files is None:  # the worker is busy
            return [job]
        for name, content in sorted(files.items(), reverse=True):  # weights before the record that is made from them
            atomic.write(self._work.folder / name, content)
        return []

    def _halves(self, job: Job, reason: str) -> list[Job]:
        return self._workload.halve(job.resumed(self._work.folder), reason)

    def _given_up(self, job: Job) -> Job:
        self._workload.note(job, "given up, because workers died while they worked on it")
        self._workload.progress.forget(self._workload.label(job))
        return job

    def _show(self, event: tuple[float, dict[str, Any]]) -> None:
        """Shows what a worker reports of a job, in a thread of the client."""
        _, message = event
        key, address, progress = message["key"], message["worker"], self._workload.progress
        if not key.startswith(self._prefix):
            return
        if (before := self._places.get(key, address)) != address:
            progress.note(f"worker {address} continues what {before} did, which has left or died")
        self._places[key] = address
        if "note" in message:
            progress.note(message["note"])
            return
        label, phase, done = message["label"], message["phase"], message["done"]
        if (key, phase, label) not in self._shown:
            self._shown[key, phase, label] = progress.start(label, message["steps"], done, phase)
        task = self._shown[key, phase, label]
        task.numbers = message["numbers"]
        task.update(done)


def _runs(job: Job) -> int:
    return len(job.cohort.runs)


def memory_for_jobs(workers: list[dict[str, Any]]) -> float:
    """Memory that workers have for a job: the most that they declare, otherwise the least that their limits leave."""
    declared = [each["resources"]["MEMORY"] for each in workers if "MEMORY" in each["resources"]]
    limits = [each["memory_limit"] - OWN_MEMORY for each in workers if each["memory_limit"]]
    return max(declared) if declared else min(limits, default=math.inf)
