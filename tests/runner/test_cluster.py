"""Studies on a cluster of worker processes on this machine: their results, and lost workers."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
from distributed import LocalCluster
from helpers import STUDY, TIMEOUT, assert_same_results

from pyrovae import InputError, Study, open_results, run
from pyrovae.build import make_data
from pyrovae.errors import OutOfMemoryError
from pyrovae.runner.cluster import dispatch, placement, worker
from pyrovae.runner.setup import MEMORY_SHARE, bytes_of_a_run, start
from pyrovae.system import atomic, tensor_file
from pyrovae.system.provenance import software_versions

pytestmark = pytest.mark.usefixtures("few_figures")

#: Long enough for workers to die during training.
LONG = STUDY.replace(name="long", steps=300, beta=[0.1, 1], checkpoint_every=20)
#: A prior that kills workers while a file exists.
DEADLY = """
import multiprocessing, os, pathlib, signal
from pyrovae.models.priors import StandardNormal

def prior(latent_size):
    if multiprocessing.parent_process() is not None and pathlib.Path(__file__).with_name("armed").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return StandardNormal(latent_size)
"""


def local(workers: int, **settings: Any) -> LocalCluster:
    return LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50, **settings
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two workers, which can import the module `deadly`."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("modules")
        (place / "deadly.py").write_text(DEADLY, encoding="utf-8")
        patch.syspath_prepend(place)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with local(2) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run in this process."""
    place = tmp_path_factory.mktemp("alone")
    run(STUDY, place / "study", quiet=True)
    return place / "study"


def processes(cluster: LocalCluster) -> dict[str, int]:
    """The processes of the workers, by address."""
    nannies = cluster.workers.values()
    return {nanny.worker_address: nanny.pid for nanny in nannies if nanny.worker_address and nanny.pid}


def test_cluster_gives_bitwise_the_results_of_one_process(cluster: LocalCluster, alone: Path, tmp_path: Path) -> None:
    """And both of its workers did the work."""
    results = run(STUDY, tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)
    assert_same_results(alone, tmp_path / "study")
    workers = set(results.tree["runs/worker"].values.flatten())
    machine = f"on {os.uname().nodename}"
    assert workers == {f"{address}, process {pid} {machine}" for address, pid in processes(cluster).items()}
    assert os.getpid() not in processes(cluster).values()
    assert set(open_results(alone).tree["runs/worker"].values.flatten()) == {f"process {os.getpid()} {machine}"}


def test_workers_need_no_shared_folder(
    cluster: LocalCluster,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(atomic, "holder", lambda folder: "another machine")
    run(STUDY, tmp_path / "study", scheduler=cluster.scheduler_address)
    assert "does not see" in capfd.readouterr().out
    assert_same_results(alone, tmp_path / "study")


def test_cohorts_are_split_if_that_saves_time(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the parts agree with the whole up to rounding, and R and D within their errors."""
    monkeypatch.setattr(placement, "STEP_OVERHEAD", 0)  # as if training took long
    study = STUDY.replace(depth=1, beta=[0.1, 1], steps=50)
    whole = run(study, tmp_path / "whole", quiet=True)
    parts = run(study, tmp_path / "parts", scheduler=cluster.scheduler_address, quiet=True)
    assert [cohort.name for cohort in parts.cohorts()] == ["000-0", "000-1"]
    assert len(set(parts.tree["runs/worker"].values.flatten())) == 2
    for beta in (0.1, 1):
        pairs = [dict(results.pair(beta=beta).named_parameters()) for results in (whole, parts)]
        torch.testing.assert_close(*pairs, rtol=0, atol=1e-4)
    for name in ("distortion", "rate"):
        one, other = (results.tree["rate_distortion"].to_dataset() for results in (whole, parts))
        assert (abs(one[name] - other[name]) < one[f"{name}_se"]).all()


def test_slow_scheduler_does_not_count_as_lost_workers(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    known, calls = dispatch.Dispatch._known_workers, []

    def slow(self: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise TimeoutError("timed out")
        return known(self)

    monkeypatch.setattr(dispatch.Dispatch, "_known_workers", slow)
    monkeypatch.setattr(dispatch, "INTERVAL", 0.01)  # so that it is asked often
    study = STUDY.replace(depth=1, steps=200)
    results = run(study, tmp_path / "study", scheduler=cluster.scheduler_address, compile="never")
    assert len(calls) > 1
    assert "died" not in capfd.readouterr().out
    assert set(results.tree["runs/status"].values.flatten()) == {"done"}


@contextmanager
def killing(cluster: LocalCluster, folder: Path, every: float, most: int) -> Iterator[list[int]]:
    """Kills a worker every few seconds, at most so many times, once a study has checkpoints."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        rng = np.random.default_rng(0)
        while len(killed) < most and not over.wait(every):
            if not any(folder.glob("checkpoints/*")):
                continue
            for pid in rng.permutation(sorted(processes(cluster).values()))[:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(int(pid))

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_killed_workers_do_not_change_results(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another worker continues from the checkpoint; a cohort that makes progress is not given up."""
    run(LONG, tmp_path / "alone", compile="never", quiet=True)
    monkeypatch.setattr(dispatch, "MOST_DEATHS", 100)  # three deaths at one checkpoint can happen by chance
    with killing(cluster, tmp_path / "killed", every=2.5, most=2) as killed:
        run(LONG, tmp_path / "killed", scheduler=cluster.scheduler_address, compile="never")
    out = capfd.readouterr().out
    assert killed
    assert out.count("died; another one continues") > 0
    assert "resumes from step" in out
    assert_same_results(tmp_path / "alone", tmp_path / "killed")


def test_cohort_that_kills_its_workers_is_given_up(
    cluster: LocalCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import deadly  # type: ignore[import-not-found]

    armed = Path(deadly.__file__).with_name("armed")
    study = STUDY.replace(depth=1, prior=["standard_normal", "deadly:prior"], name="deadly")
    armed.touch()
    with pytest.raises(InputError, match="prior deadly:prior: given up, because workers died of it"):
        run(study, tmp_path / "study", scheduler=cluster.scheduler_address)
    assert capfd.readouterr().out.count("died; another one continues") == dispatch.MOST_DEATHS - 1
    results = open_results(tmp_path / "study")
    status = results.tree["runs/status"].isel(beta=0, seed=0)
    assert status.sel(prior="standard_normal").item() == "done"
    assert status.sel(prior="deadly:prior").item() == "killed"
    assert [results.has(cohort) for cohort in results.cohorts()] == [True, False]
    armed.unlink()
    results = run(study, tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)
    assert set(results.tree["runs/status"].values.flatten()) == {"done"}


def test_workers_with_other_versions_are_refused(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = software_versions()
    monkeypatch.setattr(worker, "software_versions", lambda: theirs.replace("torch 2", "torch 1"))
    torch_1 = (
        r"worker tcp://127.0.0.1:\d+: expected torch 1\S* as here, got torch 2\S*; install the same versions there"
    )
    with pytest.raises(InputError, match=torch_1):
        run(STUDY, tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)
    assert not list((tmp_path / "study").rglob("*.safetensors"))


def test_workers_without_a_module_are_refused(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(DEADLY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    missing = "expected what the study needs to be installed, got ModuleNotFoundError: No module named 'mine'"
    with pytest.raises(InputError, match=missing):
        run(STUDY.replace(prior="mine:prior"), tmp_path / "study", scheduler=cluster.scheduler_address, quiet=True)


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


def reached(folder: Path) -> int:
    """Steps in the checkpoints of a folder."""
    return sum(tensor_file.load(file)[1]["step"] for file in folder.glob("checkpoints/*.safetensors"))


@pytest.mark.long
def test_study_continues_after_its_scheduler_is_lost(tmp_path: Path) -> None:
    host = tmp_path / "host.py"
    host.write_text(HOST, encoding="utf-8")
    study = LONG.replace(depth=1)
    with subprocess.Popen([sys.executable, str(host)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()

        def kill() -> None:
            while reached(tmp_path / "study") < 100:
                time.sleep(0.1)
            process.kill()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        with pytest.raises(
            InputError, match="scheduler: expected it to answer, but the connection is lost; finished work is k"
        ):
            run(study, tmp_path / "study", scheduler=address, compile="never", quiet=True)
    assert 100 <= reached(tmp_path / "study") < 300
    run(study, tmp_path / "study", compile="never", quiet=True)
    run(study, tmp_path / "alone", compile="never", quiet=True)
    assert_same_results(tmp_path / "alone", tmp_path / "study")


def test_interrupt_has_workers_write_their_checkpoints(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = LONG.replace(steps=100_000, checkpoint_every=100_000)
    process_events = dispatch.Dispatch._process_events

    def interrupted(self: Any) -> None:
        process_events(self)
        if len(self._tasks) == 2 and all(task.done > 20 for task in self._tasks.values()):
            raise KeyboardInterrupt

    monkeypatch.setattr(dispatch.Dispatch, "_process_events", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "study", scheduler=cluster.scheduler_address, compile="never", quiet=True)
    assert reached(tmp_path / "study") > 40


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
    assert "the same command resumes" in out
    assert reached(tmp_path / "study") > 100


def test_another_worker_continues_when_one_leaves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As at the end of a batch job."""
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
    assert "resumes from step" in "".join(printed)
    assert "died" not in "".join(printed)


def test_cohorts_are_split_for_the_declared_memory(tmp_path: Path) -> None:
    study = STUDY.replace(depth=1, beta=[0.1, 0.3, 1, 3], steps=2)
    (cohort,) = study.cohorts()
    training, _ = start(study, cohort, make_data(cohort.shared))
    needed = bytes_of_a_run(training.lockstep.pair(0), cohort, training.data) / MEMORY_SHARE
    with local(1, processes=False, resources={"MEMORY": 3.01 * needed}) as cluster:
        results = run(study, tmp_path / "some", scheduler=cluster.scheduler_address, quiet=True)
    assert [cohort.name for cohort in results.cohorts()] == ["000-0", "000-1"]
    assert set(results.tree["runs/status"].values.flatten()) == {"done"}
    message = "expected workers with 0.0 GB of memory for one run, got at most 0.0 GB"
    few = {"MEMORY": 0.99 * needed}
    with local(1, processes=False, resources=few) as cluster, pytest.raises(OutOfMemoryError, match=re.escape(message)):
        run(study, tmp_path / "none", scheduler=cluster.scheduler_address, quiet=True)


def test_cuda_needs_workers_with_a_gpu(tmp_path: Path) -> None:
    with (
        local(1, processes=False) as cluster,
        pytest.raises(InputError, match="device: expected workers that have CUDA"),
    ):
        run(STUDY, tmp_path / "study", device="cuda", scheduler=cluster.scheduler_address, quiet=True)


def test_cohorts_are_split_only_if_that_saves_time() -> None:
    (cohort,) = Study.of(name="wide", beta=list(range(1, 65)), steps=10**6).cohorts()
    cost = partial(placement.cost, size=1.0)
    for workers, expected in ((1, 1), (2, 2), (3, 8), (4, 4), (16, 16), (100, 64)):
        pieces = placement.split([cohort], workers, cost, lambda piece: True)
        assert len(pieces) == expected
        assert sorted(run.beta for piece in pieces for run in piece.runs) == [run.beta for run in cohort.runs]
    short = cohort.model_copy(update={"runs": tuple(run.model_copy(update={"steps": 1}) for run in cohort.runs)})
    assert placement.split([short], 2, cost, lambda piece: True) == [short]
