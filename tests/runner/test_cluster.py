"""Studies on a cluster of worker processes on this machine: their results, and lost workers."""

import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import filelock
import pytest
import torch
import xarray as xr
from distributed import LocalCluster
from helpers import STUDY, TIMEOUT, assert_same_results, no_drawing

from pyrovae import InputError, Study, open_results, run
from pyrovae.build import make_cohort_data
from pyrovae.data import memory as data_in_memory
from pyrovae.errors import OutOfMemoryError
from pyrovae.runner.cluster import worker
from pyrovae.runner.cluster.dispatch import OWN_MEMORY, Dispatcher, memory_for_jobs
from pyrovae.runner.cluster.worker import StudyWork
from pyrovae.runner.cohort import run_job
from pyrovae.runner.jobs import Job
from pyrovae.runner.remeasure import reevaluate
from pyrovae.runner.setup import MEMORY_SHARE, bytes_of_a_run, start
from pyrovae.store.layout import RunFolder, moving_checkpoint, moving_checkpoints
from pyrovae.system import atomic, matmul, memory, tensor_file
from pyrovae.system.execution import Execution
from pyrovae.system.matmul import library_in_use
from pyrovae.system.provenance import software_versions
from pyrovae.training.trainer import Interrupted

#: Long enough for workers to die during training.
LONG = STUDY.replace(name="long", steps=300, beta=[0.1, 1], checkpoint_every=20)
#: Four runs in one cohort.
ONE_COHORT = STUDY.replace(depth=1, beta=[0.1, 0.3, 1, 3], steps=2)
#: A prior that kills workers while a file exists.
DEADLY = """
import multiprocessing, os, pathlib, signal
from pyrovae.models.priors import StandardNormal

def prior(latent_size):
    if multiprocessing.parent_process() is not None and pathlib.Path(__file__).with_name("armed").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return StandardNormal(latent_size)
"""
#: A module that workers cannot import.
BROKEN = """
import multiprocessing
from pyrovae.models.priors import StandardNormal as Prior

if multiprocessing.parent_process() is not None:
    raise OSError("libmissing.so: cannot open shared object file")
"""


def local(workers: int, **settings: Any) -> LocalCluster:
    settings = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "silence_logs": 50, **settings}
    return LocalCluster(n_workers=workers, **settings)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder from which this process and its workers import modules."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("modules")
        patch.syspath_prepend(place)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield place


@pytest.fixture(scope="module")
def cluster(modules: Path) -> Iterator[LocalCluster]:
    """Two workers."""
    with local(2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run in this process."""
    place = tmp_path_factory.mktemp("alone")
    run(STUDY, place / "study", quiet=True)
    return place / "study"


@pytest.fixture
def no_shared_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take the folder of the study for another one."""
    monkeypatch.setattr(atomic, "holder", lambda folder: "another machine")


def processes(cluster: LocalCluster) -> dict[str, int]:
    """The processes of the workers, by address."""
    nannies = cluster.workers.values()
    return {nanny.worker_address: nanny.pid for nanny in nannies if nanny.worker_address and nanny.pid}


def facts(folder: Path, name: str) -> set[Any]:
    """The values of a fact about the runs in a folder."""
    return set(open_results(folder).tree["runs"].to_dataset()[name].values.flat)


def reached(folder: Path) -> list[int]:
    """Steps in the checkpoints of the cohorts at work in a folder."""
    return [tensor_file.load(file)[1]["step"] for file in moving_checkpoints(folder)]


def test_cluster_gives_bitwise_the_results_of_one_process(cluster: LocalCluster, alone: Path, tmp_path: Path) -> None:
    """And both of its workers did the work."""
    run(STUDY, tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)
    assert_same_results(alone, tmp_path / "study")
    machine = f"on {os.uname().nodename}"
    assert facts(tmp_path / "study", "worker") == {f"process {pid} {machine}" for pid in processes(cluster).values()}
    assert facts(alone, "worker") == {f"process {os.getpid()} {machine}"}


@pytest.mark.usefixtures("no_shared_folder")
def test_workers_need_no_shared_folder(
    cluster: LocalCluster, alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(STUDY, tmp_path / "study", scheduler=cluster.scheduler_address)
    assert "does not see" in capfd.readouterr().out
    assert_same_results(alone, tmp_path / "study")


@pytest.mark.long
@pytest.mark.usefixtures("no_shared_folder")
def test_longer_study_continues_without_a_shared_folder(
    cluster: LocalCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = STUDY.replace(depth=[1, 2], steps=30)
    for place, scheduler in (("alone", None), ("cluster", cluster.scheduler_address)):
        run(study.replace(steps=10), tmp_path / place, compile="never", quiet=True)
        run(study, tmp_path / place, compile="never", scheduler=scheduler)
    assert capfd.readouterr().out.count("continues from step 10") == 4
    assert_same_results(tmp_path / "alone", tmp_path / "cluster")


@pytest.mark.parametrize("shared", [pytest.param(True, marks=pytest.mark.long), False])
def test_evaluation_on_a_cluster_equals_that_of_one_process(
    cluster: LocalCluster, alone: Path, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        monkeypatch.setattr(atomic, "holder", lambda folder: "another machine")
    found = []
    for scheduler in (None, cluster.scheduler_address):
        results, evaluation = reevaluate(alone, samples=4, scheduler=scheduler)
        found.append(evaluation.tree["rate_distortion"].to_dataset().load())
        workers = set(evaluation.tree["runs"].to_dataset()["worker"].values.flat)
        assert (scheduler is None) == (workers == {f"process {os.getpid()} on {os.uname().nodename}"})
        for key in results.tree["runs"].to_dataset()["key"].values.flat:
            RunFolder.of(alone, key).record("samples=4").unlink()
    xr.testing.assert_identical(*found)


#: Data in memory.
X = torch.rand(96, 1, 4, 4, generator=torch.Generator().manual_seed(0))
IN_MEMORY: dict[str, Any] = {
    "test": X[64:], "width": 4, "latent_size": 2, "steps": 4, "batch_size": 16, "measure": STUDY.measure.model_dump(),
}  # fmt: skip


@pytest.mark.usefixtures("no_shared_folder")
def test_workers_get_data_in_memory(cluster: LocalCluster, tmp_path: Path) -> None:
    """For training and for evaluations."""
    with no_drawing():
        run(Study(X[:64], **IN_MEMORY), tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)
        reevaluate(tmp_path / "study", samples=2, scheduler=cluster.scheduler_address)
        evaluated = open_results(tmp_path / "study").evaluations["samples=2"]
    assert evaluated.tree["rate_distortion"].to_dataset()["distortion"].notnull().all()


def test_large_data_in_memory_are_refused_with_workers(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_in_memory, "LIMIT", X.nbytes - 1)
    with pytest.raises(InputError, match="data: expected data that the study's folder keeps"):
        run(Study(X[:64], **IN_MEMORY), tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)
    assert not list((tmp_path / "study").rglob("weights.safetensors"))


@pytest.mark.long
def test_jobs_are_split_for_more_workers(cluster: LocalCluster, tmp_path: Path) -> None:
    """The weights of the parts agree with the whole up to rounding, and R and D within their errors."""
    study = STUDY.replace(depth=1, beta=[0.1, 1], steps=50)
    whole = run(study, tmp_path / "whole", quiet=True)
    parts = run(study, tmp_path / "parts", scheduler=cluster.scheduler_address, quiet=True)
    assert len(facts(tmp_path / "parts", "worker")) == 2
    for beta in (0.1, 1):
        pairs = [dict(results.pair(beta=beta).named_parameters()) for results in (whole, parts)]
        torch.testing.assert_close(*pairs, rtol=0, atol=1e-4)
    for name in ("distortion", "rate"):
        one, other = (results.tree["rate_distortion"].to_dataset() for results in (whole, parts))
        assert (abs(one[name] - other[name]) < one[f"{name}_se"]).all()


@contextmanager
def killing(cluster: LocalCluster, ready: Callable[[], bool]) -> Iterator[None]:
    """Kills all workers of the cluster once something is so; others take their places."""

    def kill() -> None:
        while not ready():
            time.sleep(0.05)
        for process in processes(cluster).values():
            os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield
    thread.join(TIMEOUT)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def long_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long study, run in this process."""
    place = tmp_path_factory.mktemp("alone")
    run(LONG, place / "study", compile="never", quiet=True)
    return place / "study"


@pytest.mark.long
def test_killed_workers_cost_the_steps_since_their_checkpoints(
    cluster: LocalCluster, long_alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with killing(cluster, lambda: max(reached(tmp_path / "study"), default=0) >= 40):
        run(LONG, tmp_path / "study", scheduler=cluster.scheduler_address, compile="never")
    out = capfd.readouterr().out
    assert re.search("worker .* continues what .* did, which has left or died", out)
    assert "continues from step" in out
    assert_same_results(long_alone, tmp_path / "study")


@pytest.mark.long
@pytest.mark.usefixtures("no_shared_folder")
def test_killed_workers_cost_their_jobs_without_a_shared_folder(
    cluster: LocalCluster, long_alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scheduler = cluster.scheduler
    with killing(cluster, lambda: all(state.processing for state in scheduler.workers.values())):
        run(LONG, tmp_path / "study", scheduler=cluster.scheduler_address, compile="never")
    assert "given up" not in capfd.readouterr().out
    assert_same_results(long_alone, tmp_path / "study")


@pytest.mark.long
def test_job_that_kills_its_workers_is_given_up(
    cluster: LocalCluster, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no other job is blamed."""
    (modules / "deadly.py").write_text(DEADLY, encoding="utf-8")
    (modules / "armed").touch()
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    priors = ["deadly:prior", "standard_normal", "mixture", "student_t"]
    study = STUDY.replace(depth=1, prior=priors, steps=10, name="deadly")
    with pytest.raises(InputError, match=r"prior deadly:prior: given up, because workers died of it"):
        run(study, tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)
    status = open_results(tmp_path / "study").tree["runs"].to_dataset()["status"].isel(beta=0, seed=0)
    assert status.to_series().to_dict() == dict.fromkeys(priors, "done") | {"deadly:prior": "pending"}
    (modules / "armed").unlink()
    run(study, tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)
    assert facts(tmp_path / "study", "status") == {"done"}


def test_job_resumes_from_the_furthest_state_of_its_runs(alone: Path) -> None:
    """From its moving checkpoint, and from the weights of its runs once that is gone."""
    cohort = STUDY.cohorts()[0]
    job, weights = Job(cohort), RunFolder.of(Path(), cohort.keys[0]).weights
    assert job.resumed(alone / "elsewhere") == job
    assert job.resumed(alone) == Job(cohort, (weights,), STUDY.runs()[0].steps)
    moving = moving_checkpoint(alone, cohort.key)
    moving.write_bytes((alone / weights).read_bytes())
    assert job.resumed(alone).files == (moving.relative_to(alone),)
    moving.unlink()


def test_runs_are_never_trained_by_two_workers_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Such as one that was cut off, and the one that replaces it."""
    study = STUDY.replace(depth=1, steps=2)
    folder = tmp_path / "study" / ".locks"
    folder.mkdir(parents=True)
    lock = filelock.FileLock(folder / study.cohorts()[0].key, thread_local=False)
    lock.acquire()
    threading.Timer(1.5, lock.release).start()
    with local(1, processes=False) as other:
        run(study, tmp_path / "study", scheduler=other.scheduler_address)
    assert capfd.readouterr().out.count("waits for another process, which still works on it") == 1
    assert facts(tmp_path / "study", "status") == {"done"}


def test_worker_that_waits_for_another_can_be_stopped(tmp_path: Path) -> None:
    job, work = Job(STUDY.cohorts()[0]), StudyWork.of(run_job, STUDY, tmp_path, Execution())
    progress = mock.Mock(stop_requested=lambda: True)
    lock = tmp_path / ".locks" / job.cohort.key
    with atomic.exclusive(lock, lambda _: False), ThreadPoolExecutor() as pool, pytest.raises(Interrupted):
        pool.submit(work._work, job, tmp_path, progress).result()
    progress.note.assert_called_once()
    assert f"waits for process {os.getpid()} on {platform.node()}, which still works" in str(progress.note.call_args)


def test_workers_use_the_library_that_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "onednn_is_exact", lambda: True)  # here, it may round
    used: list[str] = []

    def watched(*_: Any) -> None:
        used.append(library_in_use())

    for library in ("blas", "onednn"):
        work = StudyWork.of(watched, STUDY, tmp_path, Execution(matmul=library))  # type: ignore[arg-type]
        work._work(Job(STUDY.cohorts()[0]), tmp_path, mock.Mock())
    assert used == ["blas", "onednn"]


@pytest.mark.long
def test_busy_worker_does_the_job_later(tmp_path: Path) -> None:
    """Such as that of another study."""
    worker._WORKING.acquire()
    threading.Timer(1.5, worker._WORKING.release).start()
    with local(1, processes=False, threads_per_worker=2) as other:
        run(STUDY.replace(depth=1, steps=2), tmp_path / "study", scheduler=other.scheduler_address, quiet=True)
    assert facts(tmp_path / "study", "status") == {"done"}


TORCH_1 = r"worker tcp://127.0.0.1:\d+: expected torch 1\S* as here, got torch 2\S*; install the same versions there"


@pytest.fixture
def torch_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process seems to have another version of torch than the workers."""
    theirs = software_versions()
    monkeypatch.setattr(worker, "software_versions", lambda: theirs.replace("torch 2", "torch 1"))


@pytest.mark.usefixtures("torch_1")
def test_workers_with_other_versions_are_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=TORCH_1):
        run(STUDY, tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)
    assert not list((tmp_path / "study").rglob("*.safetensors"))


@pytest.mark.usefixtures("torch_1")
def test_later_workers_with_other_versions_are_refused(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dispatcher, "_check", lambda self: True)  # as if they had not been there yet
    with pytest.raises(InputError, match=TORCH_1):
        run(STUDY, tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)
    assert not list((tmp_path / "study").rglob("*.safetensors"))


def test_workers_without_a_module_are_refused(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text(DEADLY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    missing = "expected what the study needs to be installed, got ModuleNotFoundError: No module named 'only_here'"
    with pytest.raises(InputError, match=missing):
        run(STUDY.replace(prior="only_here:prior"), tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)


def test_worker_with_a_broken_module_is_one_line(cluster: LocalCluster, modules: Path, tmp_path: Path) -> None:
    """Not even an OSError from the module is taken for a lost worker."""
    (modules / "broken.py").write_text(BROKEN, encoding="utf-8")
    problem = r"worker tcp://127.0.0.1:\d+: expected what the study needs to be installed, got OSError: libmissing.so"
    with pytest.raises(InputError, match=problem):
        run(STUDY.replace(prior="broken:Prior"), tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "localhost"])
def test_address_without_a_port_is_one_line(address: str, tmp_path: Path) -> None:
    with (
        mock.patch("pyrovae.runner.cluster.dispatch.Client", side_effect=AssertionError),
        pytest.raises(InputError, match=f"expected a Dask scheduler at {address}, got missing port number"),
    ):
        run(STUDY, tmp_path / "study", scheduler=address, quiet=True)


@pytest.mark.long
def test_script_that_workers_would_run_again_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("from pyrovae import Study, run\nrun(Study.load('quick'), 'mine', scheduler='local')\n")
    found = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    line = found.stderr.splitlines()[-1]
    assert line.startswith("pyrovae.errors.InputError: scheduler:")
    assert "expected the call below 'if __name__ == \"__main__\":', got " in line
    assert not (tmp_path / "mine/runs").exists()


def test_missing_scheduler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"scheduler: expected a Dask scheduler at tcp://127\.0\.0\.1:9, got "
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), pytest.raises(InputError, match=message):
        run(STUDY, tmp_path / "study", scheduler="tcp://127.0.0.1:9", quiet=True)
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "pyrovae.runner.cluster.dispatch")
    with pytest.raises(InputError, match="install it with pip install 'pyrovae"):
        run(STUDY, tmp_path / "study", scheduler="local", quiet=True)


#: A cluster in a separate process.
HOST = """
import sys, time
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        print(cluster.scheduler_address, flush=True)
        time.sleep(600)
"""


@pytest.mark.long
def test_study_continues_after_its_scheduler_is_lost(tmp_path: Path) -> None:
    host = tmp_path / "host.py"
    host.write_text(HOST, encoding="utf-8")
    study = LONG.replace(depth=1)
    with subprocess.Popen([sys.executable, str(host)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()

        def kill() -> None:
            while sum(reached(tmp_path / "study")) < 100:
                time.sleep(0.1)
            process.kill()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        with pytest.raises(InputError, match="scheduler: expected it to answer, but the connection is lost"):
            run(study, tmp_path / "study", scheduler=address, compile="never", quiet=True)
    assert 100 <= sum(reached(tmp_path / "study")) < 300
    run(study, tmp_path / "study", compile="never", quiet=True)
    run(study, tmp_path / "alone", compile="never", quiet=True)
    assert_same_results(tmp_path / "alone", tmp_path / "study")


@pytest.mark.long
def test_interrupt_has_workers_write_their_checkpoints(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they stay for other work. The workers are its own, because it waits until both are at work."""
    study = LONG.replace(steps=100_000, checkpoint_every=100_000)
    submit = Dispatcher._submit

    def interrupted(self: Any, *rest: Any) -> None:
        submit(self, *rest)
        if len(self._shown) == 2 and all(task.done > 20 for task in self._shown.values()):
            raise KeyboardInterrupt

    monkeypatch.setattr(Dispatcher, "_submit", interrupted)
    with local(2) as cluster:
        before = processes(cluster)
        with pytest.raises(KeyboardInterrupt):
            run(study, tmp_path / "study", scheduler=cluster.scheduler_address, compile="never", quiet=True)
        assert min(reached(tmp_path / "study")) > 20
        assert processes(cluster) == before


@pytest.mark.long
def test_interrupt_at_the_terminal_has_workers_write_their_checkpoints(tmp_path: Path) -> None:
    """The signal reaches all processes of the command, and the same command continues where each worker stopped."""
    study = LONG.replace(steps=100_000, checkpoint_every=100_000)
    (tmp_path / "study.yaml").write_text(study.to_yaml(), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("pyrovae")), "run", "study.yaml", "--out", "study"]
    command += ["--scheduler", "local", "--compile", "never"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "of 100,000 steps" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        out = process.stdout.read()
        assert process.wait(TIMEOUT) == 130
    assert "Traceback" not in out
    assert "the same command continues" in out
    assert max(reached(tmp_path / "study")) > 100


@pytest.mark.long
def test_another_worker_continues_when_one_leaves(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of a batch job."""
    monkeypatch.setattr("pyrovae.system.progress.INTERVAL", 0.0)
    study = LONG.replace(depth=1, checkpoint_every=300)
    with local(1, processes=False) as other:

        def leave() -> None:
            while "of 300 steps" not in "".join(printed):
                printed.append(capfd.readouterr().out)
                time.sleep(0.1)
            (address,) = other.scheduler_info["workers"]
            other.sync(other.scheduler.retire_workers, workers=[address])
            other.scale(2)

        printed: list[str] = []
        leaving = threading.Thread(target=leave, daemon=True)
        leaving.start()
        run(study, tmp_path / "study", scheduler=other.scheduler_address, compile="never")
        leaving.join(TIMEOUT)
    printed.append(capfd.readouterr().out)
    assert "continues from step" in "".join(printed)
    assert facts(tmp_path / "study", "status") == {"done"}


def test_job_that_runs_out_of_memory_is_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def check(size: float, what: str, *rest: Any, **options: Any) -> None:
        if what == "4 runs in lockstep":
            raise RuntimeError("you can't allocate memory for four")

    monkeypatch.setattr(memory, "check_memory", check)
    with local(1, processes=False) as cluster:
        run(ONE_COHORT, tmp_path / "study", scheduler=cluster.scheduler_address)
    assert "continues in two halves, because you can't allocate memory for four" in capfd.readouterr().out
    assert len(facts(tmp_path / "study", "cohort")) == 2


@pytest.mark.long
def test_jobs_are_split_for_the_declared_memory(tmp_path: Path) -> None:
    (cohort,) = ONE_COHORT.cohorts()
    training, _ = start(ONE_COHORT.measure, cohort, make_cohort_data(cohort.runs))
    needed = bytes_of_a_run(training.lockstep.pair(0), cohort, training.data) / MEMORY_SHARE
    with local(1, processes=False, resources={"MEMORY": 3.01 * needed}) as cluster:
        run(ONE_COHORT, tmp_path / "some", scheduler=cluster.scheduler_address, quiet=True)
    assert len(facts(tmp_path / "some", "cohort")) == 2
    few = {"MEMORY": 0.99 * needed}
    message = "expected one run to fit into memory, but it would take 0.0 GB, and workers have 0.0 GB"
    with local(1, processes=False, resources=few) as cluster, pytest.raises(OutOfMemoryError, match=message):
        run(ONE_COHORT, tmp_path / "none", scheduler=cluster.scheduler_address, quiet=True)


def test_lowest_limit_counts_where_no_memory_is_declared() -> None:
    small, large = ({"resources": {}, "memory_limit": size * 2**30} for size in (2, 4))
    assert memory_for_jobs([small, large]) == 2 * 2**30 - OWN_MEMORY
    assert memory_for_jobs([small, large | {"resources": {"MEMORY": 5.0}}]) == 5
    assert memory_for_jobs([small | {"memory_limit": 0}]) == float("inf")


def test_error_of_a_job_names_its_worker(tmp_path: Path) -> None:
    with (
        local(1, processes=False) as cluster,
        pytest.raises(InputError, match=r"worker inproc://\S+: device: expected "),
    ):
        run(STUDY, tmp_path / "study", device="cuda", scheduler=cluster.scheduler_address, quiet=True)
