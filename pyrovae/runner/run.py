"""Runs a study from end to end: trains, measures and records its cohorts, and draws the results."""

from collections.abc import Mapping
from pathlib import Path

import torch

from pyrovae.build import assemble, make_data
from pyrovae.errors import InputError
from pyrovae.runner import reporting
from pyrovae.runner.cohort import CohortPaths, cohort_label, measuring_steps, run_cohort
from pyrovae.runner.measuring import rehearse
from pyrovae.runner.open import attach_theory
from pyrovae.runner.plan import plan
from pyrovae.runner.setup import bytes_of_a_run, check_precision, start
from pyrovae.runner.validation import check_study
from pyrovae.runner.workload import Workload, workload
from pyrovae.store.results import Results
from pyrovae.study import Cohort, Study
from pyrovae.system import atomic
from pyrovae.system.device import find_device
from pyrovae.system.execution import Compile, Execution


def run(
    study: Study,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    compile: Compile = "auto",
    scheduler: str | None = None,
    quiet: bool = False,
) -> Results:
    """Runs a study, or continues one that was interrupted, and returns its results.

    Args:
        study: what to run.
        out: folder for everything that the study writes; ``runs/NAME`` by default.
        device: "auto" (CUDA if available), "cpu" or "cuda".
        compile: whether to compile the training step: "auto" (if enough steps are left), "always" or "never".
        scheduler: the address or the file of a Dask scheduler, whose workers run the cohorts; "local" starts a cluster
            on this machine; None uses this process. A script that asks for "local" needs the usual
            ``if __name__ == "__main__":``, because the workers are processes.
        quiet: print nothing.

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
    execution = Execution(device, compile, scheduler, quiet)
    folder = Path("runs") / study.name if out is None else Path(out)
    here = find_device(device if scheduler is None else "cpu")
    study = check_study(study)
    plan(study)
    if scheduler is None:
        for cohort in study.cohorts():
            check_precision(cohort, here)
    with atomic.locked(folder):
        is_new = not (folder / "study.yaml").exists()
        sizes = _rehearse(study, here) if is_new or scheduler is not None else {}
        results = Results.create(folder, study, assemble)
        attach_theory(results)
        lost = _run_missing(results, execution, here, sizes)
        reporting.draw(results)
    if lost:
        raise InputError(
            f"{', '.join(cohort_label(study, cohort) for cohort in lost)}: given up, because workers died of it, "
            "perhaps for lack of memory; all else is done, and the same command tries it again"
        )
    return results


def _rehearse(study: Study, device: torch.device) -> dict[int, int]:
    """Bytes that a run of each cohort takes, by the index of the cohort.

    Each cohort is set up with one run, so that errors show before anything is trained or written.
    """
    sizes = {}
    for cohort in study.cohorts():
        single = cohort.model_copy(update={"runs": cohort.runs[:1]})
        training, _ = start(study, single, make_data(cohort.shared).to(device))
        rehearse(training, study.measure)
        sizes[cohort.index] = bytes_of_a_run(training.lockstep.pair(0), single, training.data)
    return sizes


def _run_missing(
    results: Results, execution: Execution, device: torch.device, sizes: Mapping[int, int]
) -> list[Cohort]:
    """Runs the cohorts whose results are missing, and returns those that were given up."""
    missing = [cohort for cohort in results.cohorts() if not results.has(cohort)]

    def steps(cohort: Cohort) -> int:
        return cohort.shared.steps + measuring_steps(results.study, cohort)

    with workload(results, missing, steps, quiet=execution.quiet) as work:
        if execution.scheduler is not None:
            return _run_on_cluster(work, missing, execution, sizes) if missing else []

        def run_here(cohort: Cohort) -> None:
            paths = CohortPaths.of(results, cohort)
            result = run_cohort(results.study, cohort, paths, device, execution.compile, work.progress)
            results.record(results.tree, cohort, result)

        work.for_each(missing, run_here)
    return []


def _run_on_cluster(
    work: Workload, cohorts: list[Cohort], execution: Execution, sizes: Mapping[int, int]
) -> list[Cohort]:
    """Runs cohorts on the workers of a cluster, and returns those that were given up."""
    try:
        from pyrovae.runner.cluster.dispatch import Dispatch, connected
    except ImportError as error:
        raise InputError(
            f"scheduler: expected Dask, got {error}; install it with pip install 'pyrovae[dask]'"
        ) from error
    assert execution.scheduler is not None
    with connected(execution.scheduler) as client:
        return Dispatch(client, work, execution, lambda cohort: sizes[cohort.index]).run(cohorts)
