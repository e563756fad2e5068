"""Runs a study from end to end: trains, measures and records its cohorts, and draws the results."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from pyrovae.build import assemble, make_cohort_data
from pyrovae.data import memory
from pyrovae.errors import InputError
from pyrovae.programs.noise import fork_seed
from pyrovae.runner import reporting
from pyrovae.runner.cohort import run_job
from pyrovae.runner.estimate import Cost, estimate
from pyrovae.runner.jobs import Job, covered, jobs
from pyrovae.runner.measuring import rehearse
from pyrovae.runner.open import attach_theory
from pyrovae.runner.plan import lines, plan, planned
from pyrovae.runner.setup import bytes_of_a_run, check_precision, start
from pyrovae.runner.speed import Speeds
from pyrovae.runner.validation import check_study
from pyrovae.runner.workload import Workload
from pyrovae.store.checkpoint import load_header
from pyrovae.store.results import Results
from pyrovae.study import Cohort, Measure, Study
from pyrovae.system import atomic
from pyrovae.system.device import find_device, float32_by_default
from pyrovae.system.execution import Compile, Execution, Matmul
from pyrovae.system.progress import Expected, StudyProgress
from pyrovae.training.trainer import Callback


@float32_by_default()
@fork_seed(0)
def run(
    study: Study,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    compile: Compile = "auto",
    matmul: Matmul = "auto",
    scheduler: str | None = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Results:
    """Runs a study, or continues one that was interrupted, and returns its results.

    Args:
        study: what to run.
        out: folder for everything that the study writes; ``runs/NAME`` by default.
        device: "auto" (CUDA if available), "cpu" or "cuda".
        compile: whether to compile the training step: "auto" (if enough steps are left), "always" or "never".
        matmul: what multiplies float32 matrices on a CPU: "blas" as in torch, "onednn", or "auto" (the faster one on
            this machine, measured once).
        scheduler: the address or the file of a Dask scheduler, whose workers run the cohorts; "local" starts a cluster
            on this machine; None uses this process. A script that asks for "local" needs the usual
            ``if __name__ == "__main__":``, because the workers are processes.
        quiet: print nothing.
        callbacks: called at every point of the learning curves with `Metrics`: step, loss, D and R of each run that
            trains; the same is appended to ``metrics.jsonl`` in the folder. Not with a scheduler.

    Raises:
        InputError: the study, the folder, the device or the cluster is not what was expected; one line says how.
        Interrupted: SIGINT or SIGTERM came during training; the same call continues from there.

    Example:
        >>> study = Study.load("quick", steps=2, depth=1, width=8, train_images=64, test_images=64)
        >>> results = run(study.replace(seed=0, beta=[0.1, 1]), out=tmp_path / "mine", quiet=True)
        >>> sorted(results.tree["rate_distortion"].sizes.items())
        [('beta', 2), ('seed', 1), ('split', 2)]
        >>> pair = results.pair(beta=1)
    """
    execution = Execution(device, compile, matmul, scheduler, quiet)
    if callbacks and scheduler is not None:
        raise InputError("callbacks: expected none with a scheduler, whose workers train; follow metrics.jsonl instead")
    folder = Path("runs") / study.name if out is None else Path(out)
    here = find_device(device if scheduler is None else "cpu")
    memory.attach(folder)
    study = check_study(study)
    plan(study)
    if scheduler is None:
        for cohort in study.cohorts():
            check_precision(cohort, here)
    with atomic.locked(folder), StudyProgress(timed=scheduler is None, quiet=quiet) as progress:
        results = Results.create(folder, study, assemble)
        left, expected = _prepared(results, here, execution, progress)
        results.save_study()
        memory.keep(folder, study.base.data)
        work = Workload(study, expected, progress)
        work_on = partial(run_job, callbacks=callbacks) if callbacks else run_job
        given_up = work.do(work_on, left, folder, here, execution)
        for file in list(covered(folder)):
            file.unlink()
        progress.phase("draw")
        with Speeds(here).timing_drawing(len(study.runs())):
            results.refresh()
            attach_theory(results)
            results.save_study()  # again, in case that it was deleted meanwhile
            results.save()
            reporting.draw(results)
    work.check_done(given_up)
    return results


def _prepared(
    results: Results, device: torch.device, execution: Execution, progress: StudyProgress
) -> tuple[list[Job], Callable[[Job], Iterable[Expected]]]:
    """What is left to do, after all checks that need no training, and what each job is expected to take."""
    study, left = results.study, jobs(results, warnings.warn)
    cohorts = planned(study, left)
    for line in lines(study, cohorts):
        progress.note(line)
    progress.phase("plan")
    costs: Sequence[Cost] = ()
    if left and not execution.quiet:
        estimated = estimate(study, cohorts, results.folder, execution)
        costs = estimated.costs
        for line in estimated.lines():
            progress.note(line)
        progress.forecast.expect([Expected("draw", "", estimated.drawing)])

    def expected(job: Job) -> Iterable[Expected]:
        own = (cost for cost in costs if set(job.cohort.keys) <= set(cost.job.cohort.keys))
        return [part for cost in own for part in cost.parts(study, job)]

    progress.forecast.expect(part for job in left for part in expected(job))
    progress.phase("images")
    return [_rehearsed(job, study.measure, results.folder, device) for job in left], expected


def _rehearsed(job: Job, measure: Measure, folder: Path, device: torch.device) -> Job:
    """A job with the memory that its runs take.

    It is set up with one run, so that errors show before anything is trained or written.
    """
    single = Cohort(job.cohort.runs[:1])
    training, _ = start(measure, single, make_cohort_data(single.runs).to(device))
    (key,) = single.keys
    for header in (load_header(folder / file)[0] for file in job.files):
        if key in header.keys:
            training.check_images([header.data[header.keys.index(key)]])
    size = bytes_of_a_run(training.lockstep.pair(0), single, training.data)
    rehearse(training, measure)
    return replace(job, size=size)
