"""What a study of very many runs costs on a cluster: messages, bytes, memory, files, and time to open it.

    python tests/benchmarks/scale.py [--runs N] [--workers N] [--keep FOLDER]

A synthetic study: tiny networks, trained for two steps and measured on few images, with 50 runs per cohort, on a
scheduler and workers that are processes of this machine. Messages, the time to assemble the records and the size of
`results.nc` do not depend on the size of networks and images. Weights and records do: they are reported per run, to
compare with those of a real study.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import xarray as xr
from cost import peak_memory, seconds
from distributed import Client

from pyrovae import Study, open_results, run
from pyrovae.runner import reporting
from pyrovae.runner.cluster.worker import TOPIC

BETAS, SEEDS = 10, 5
MEASURE = {
    "images": 16, "outer": 16, "likelihood_images": 2, "particles": 2, "chains": 2, "reconstructions": 2, "probe": 2,
}  # fmt: skip


def synthetic_study(runs: int) -> Study:
    """A study in cohorts of `BETAS` times `SEEDS` runs."""
    return Study(
        name="scale",
        train_images=64,
        test_images=16,
        width=4,
        latent_size=2,
        steps=2,
        batch_size=16,
        beta=np.geomspace(0.01, 10, BETAS).tolist(),
        seed=list(range(SEEDS)),
        likelihood="gaussian",
        noise_scale=np.geomspace(0.1, 10, max(1, runs // (BETAS * SEEDS))).tolist(),
        measure=MEASURE,
    )


@contextmanager
def cluster(workers: int, folder: Path) -> Iterator[tuple[Client, psutil.Process]]:
    """A scheduler and workers in processes of their own: a client, and the process of the scheduler."""
    dask, file = str(Path(sys.executable).with_name("dask")), folder / "scheduler.json"
    common = ["--host", "127.0.0.1", "--scheduler-file", str(file), "--no-dashboard"]
    commands = (["scheduler", "--port", "0"], ["worker", "--nworkers", str(workers), "--nthreads", "1"])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "cwd": folder}
    processes = [subprocess.Popen([dask, *command, *common], **quiet) for command in commands]
    try:
        while not file.exists():
            time.sleep(0.1)
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(workers)
            yield client, psutil.Process(processes[0].pid)
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


def run_and_report(study: Study, workers: int, folder: Path) -> None:
    """Runs a study on a cluster, without figures, and prints what it costs."""
    with mock.patch.object(reporting, "draw"), cluster(workers, folder) as (client, scheduler):
        memory, sent = scheduler.memory_info().rss, bytes_sent()
        duration = seconds(
            lambda: run(study, folder / "study", scheduler=str(folder / "scheduler.json"), compile="never")
        )
        sent, memory_after = bytes_sent() - sent, scheduler.memory_info().rss
        messages = client.run_on_scheduler(progress_messages)
    runs, cohorts = len(study.runs()), len(study.cohorts())
    print(f"{runs:,} runs in {cohorts} cohorts on {workers} workers: {duration:.0f} s")
    print(f"progress messages of the workers: {messages:,}")
    print(f"bytes between all processes: {sent / 1e6:,.1f} MB, {sent / cohorts / 1e3:,.0f} kB per cohort")
    print(f"memory of the scheduler: {memory / 1e6:,.0f} MB before, {memory_after / 1e6:,.0f} MB after")
    print(f"peak memory of the process that started the study: {peak_memory() / 1e6:,.0f} MB")


def report_files(folder: Path, runs: int) -> None:
    """Prints the sizes of the files of a study, and the time to open and to draw it."""
    for pattern in ("results.nc", "runs/*/record.nc", "runs/*/weights.safetensors"):
        sizes = [file.stat().st_size for file in folder.glob(pattern)]
        print(f"{pattern}: {len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB, {sum(sizes) / runs / 1e3:,.2f} kB per run")
    for name, work in {
        "xarray.open_datatree": lambda: xr.open_datatree(folder / "results.nc", engine="h5netcdf"),
        "pyrovae.open_results": lambda: open_results(folder),
    }.items():
        times = [seconds(work) for _ in range(5)]
        print(f"{name}: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")
    (folder / "results.nc").unlink()
    print(f"assembling the records: {seconds(lambda: open_results(folder)):.1f} s")
    print(f"figures and report: {seconds(lambda: reporting.draw(open_results(folder))):.0f} s")


def progress_messages(dask_scheduler: Any) -> int:
    return int(dask_scheduler._broker._topics[TOPIC].count)


def bytes_sent() -> int:
    """Bytes sent so far between processes of this machine."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="a multiple of 50")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the study and the files of the cluster")
    options = parser.parse_args()
    study = synthetic_study(options.runs)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run_and_report(study, options.workers, folder)
        report_files(folder / "study", len(study.runs()))


if __name__ == "__main__":
    main()
