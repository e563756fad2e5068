"""What a study of very many runs costs on a cluster: messages, bytes, memory, files, and how long it takes to open.

    python tests/benchmarks/scale.py [--runs N] [--workers N] [--keep FOLDER]

A synthetic study: tiny networks, trained for two steps and measured on few images, 50 runs a cohort, on a scheduler and
workers that are processes of this machine. What does not depend on the size of networks and images is told as it is:
messages, the time that a cohort takes to be written down, the numbers of each run in results.nc. What does depend on
them, checkpoints and details, is told for a run, to be set beside those of a real study.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr
from distributed import Client

from pyrovae import Study, open_results, run
from pyrovae.runner import reporting
from pyrovae.store.results import Results

FEW = {"images": 16, "outer": 16, "likelihood_images": 2, "particles": 2, "chains": 2, "reconstructions": 2, "probe": 2}
BETAS, SEEDS = 10, 5


def study(runs: int) -> Study:
    """Of as many runs, in cohorts of `BETAS` times `SEEDS`."""
    return Study.of(
        name="scale",
        train_images=64,
        test_images=16,
        width=4,
        latent_size=2,
        steps=2,
        batch_size=16,
        beta=np.geomspace(0.01, 10, BETAS).tolist(),
        seed=list(range(SEEDS)),
        learning_rate=np.geomspace(1e-4, 1e-2, runs // (BETAS * SEEDS)).tolist(),
        measure=FEW,
    )


@contextmanager
def cluster(workers: int, folder: Path) -> Iterator[tuple[Client, psutil.Process]]:
    """A scheduler and workers, each a process, and the scheduler's."""
    dask, file = str(Path(sys.executable).with_name("dask")), str(folder / "scheduler.json")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "cwd": folder}
    common = ["--host", "127.0.0.1", "--scheduler-file", file, "--no-dashboard"]
    scheduler = subprocess.Popen([dask, "scheduler", "--port", "0", *common], **quiet)
    others = subprocess.Popen([dask, "worker", "--nworkers", str(workers), "--nthreads", "1", *common], **quiet)
    try:
        while not Path(file).exists():
            time.sleep(0.1)
        with Client(scheduler_file=file, set_as_default=False) as client:
            client.wait_for_workers(workers)
            yield client, psutil.Process(scheduler.pid)
    finally:
        others.terminate()
        others.wait()
        scheduler.terminate()
        scheduler.wait()


def measured(runs: int, workers: int, folder: Path) -> None:
    """Runs the study and tells what it cost."""
    seconds: list[float] = []
    record, draw = Results.record, reporting.draw

    def timed(self: Results, *rest: Any) -> None:
        before = time.perf_counter()
        record(self, *rest)
        seconds.append(time.perf_counter() - before)

    Results.record = timed  # type: ignore[method-assign]
    reporting.draw = lambda results: None
    with cluster(workers, folder) as (client, scheduler):
        before, lo, start = scheduler.memory_info().rss, _loopback(), time.perf_counter()
        results = run(study(runs), folder / "study", scheduler=str(folder / "scheduler.json"), compile="never")
        took, sent, after = time.perf_counter() - start, _loopback() - lo, scheduler.memory_info().rss
        told = client.run_on_scheduler(_events)
    cohorts = len(results.study.cohorts())
    first, last = (statistics.median(some) for some in (seconds[:5], seconds[-5:]))
    print(f"{runs:,} runs in {cohorts} cohorts on {workers} workers: {took:.0f} s")
    print(f"messages of workers on progress: {told:,}")
    print(f"bytes between all processes: {sent / 1e6:,.1f} MB, {sent / cohorts / 1e3:,.0f} kB a cohort")
    print(f"memory of the scheduler: {before / 1e6:,.0f} MB before, {after / 1e6:,.0f} MB after")
    print(f"memory of the process that hands out, at most: {_peak() / 1e6:,.0f} MB")
    print(f"a cohort is written down in {first:.2f} s at the beginning and {last:.2f} s at the end")
    for pattern in ("results.nc", "details/*", "checkpoints/*"):
        files = [file for file in (folder / "study").glob(pattern) if not file.name.startswith(".")]
        size = sum(file.stat().st_size for file in files)
        print(f"{pattern}: {len(files)} files, {size / 1e6:,.1f} MB, {size / runs / 1e3:,.2f} kB a run")
    for name, opened in {
        "xarray.open_datatree": lambda: xr.open_datatree(folder / "study/results.nc", engine="h5netcdf"),
        "pyrovae.open_results": lambda: open_results(folder / "study"),
    }.items():
        times = []
        for _ in range(5):
            before_it = time.perf_counter()
            opened()
            times.append(time.perf_counter() - before_it)
        print(f"{name}: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")
    before_it = time.perf_counter()
    draw(open_results(folder / "study"))
    print(f"figures and report: {time.perf_counter() - before_it:.0f} s")


def _events(dask_scheduler: Any) -> int:
    return int(dask_scheduler._broker._topics["pyrovae"].count)


def _loopback() -> int:
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for what it leaves behind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        measured(arguments.runs, arguments.workers, arguments.keep or Path(place))
