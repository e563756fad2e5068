"""One cohort, from its initial weights to its measured numbers."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyrovae.build import make_data
from pyrovae.measures.declared import declared, of_settings
from pyrovae.measures.evaluate import Evaluation, evaluate
from pyrovae.runner.measuring import progress_steps, trained_runs
from pyrovae.runner.setup import check_precision, start
from pyrovae.store import records
from pyrovae.store.results import CohortResult, Results
from pyrovae.study import PER_RUN, Cohort, Study
from pyrovae.system import atomic
from pyrovae.system.execution import Compile
from pyrovae.system.progress import ProgressReporter
from pyrovae.system.provenance import history, process_name
from pyrovae.training.precision import matmul_precision
from pyrovae.training.trainer import Interrupted, Training


@dataclass(frozen=True)
class CohortPaths:
    """The files of a cohort.

    Attributes:
        checkpoint: weights.
        details: per-image values and pictures.
        lock: held by the process that works on the cohort.
    """

    checkpoint: Path
    details: Path
    lock: Path

    @classmethod
    def of(cls, results: Results, cohort: Cohort) -> "CohortPaths":
        """The files in the folder of the study."""
        checkpoint, details = results.checkpoint_file(cohort), results.details_file(results.tree, cohort)
        return cls(checkpoint.resolve(), details.resolve(), results.lock_file(cohort).resolve())

    def in_folder(self, folder: Path) -> "CohortPaths":
        """Files of the same names in another folder."""
        return CohortPaths(folder / self.checkpoint.name, folder / self.details.name, folder / self.lock.name)


def run_cohort(
    study: Study,
    cohort: Cohort,
    paths: CohortPaths,
    device: torch.device,
    compile: Compile,
    progress: ProgressReporter,
) -> CohortResult:
    """Trains a cohort to the end, from its checkpoint if there is one, measures it, and writes its files.

    Raises:
        Interrupted: the work was stopped; the checkpoint holds the steps done.
        OutOfMemoryError: it would take more memory than is free.
    """
    check_precision(cohort, device)
    label = cohort_label(study, cohort)
    with _exclusively(paths.lock, label, progress):
        training, properties = start(study, cohort, make_data(cohort.shared).to(device))
        if paths.checkpoint.exists():
            training.resume(paths.checkpoint)
            progress.note(f"{label}: resumes from step {training.step:,}")
        before = time.perf_counter()
        task = progress.start(label, cohort.shared.steps, training.step)
        training.run(every=study.checkpoint_every, file=paths.checkpoint, compile=compile, task=task)
        seconds = time.perf_counter() - before
        measured = measure(study, cohort, training, progress)
        records.save(paths.details, study, cohort, measured)
        for note in sorted(set(measured.notes) - {""}):
            progress.note(f"{label}: {note}")
        provenance = properties.as_provenance() | history(training.environments)
        return cohort_result(training, measured, provenance | {"seconds": seconds, "worker": process_name()})


@contextmanager
def _exclusively(lock: Path, label: str, progress: ProgressReporter) -> Iterator[None]:
    """Waits until no other process works on a cohort, and keeps others out.

    Raises:
        Interrupted: the work was stopped while it waited.
    """
    notes = iter([f"{label}: waits for another process that is working on it"])

    def wait() -> bool:
        for note in notes:  # once
            progress.note(note)
        return not progress.stop_requested()

    with atomic.exclusive(lock, wait) as acquired:
        if not acquired:
            raise Interrupted
        yield


def cohort_result(training: Training, measured: Evaluation, provenance: dict[str, Any]) -> CohortResult:
    """Collects the results of a finished training, without per-image values and pictures."""
    curves = {name: torch.stack(points).numpy() for name, points in training.curves.items()}
    groups = {group: values for group, values in measured.groups.items() if group != "images"}
    small, divergence = measured._replace(groups=groups, pictures={}), training.divergence
    return CohortResult(small, curves, divergence.at.numpy(), divergence.last_loss.numpy(), provenance)


@matmul_precision("float32")
def measure(
    study: Study, cohort: Cohort, training: Training, reporter: ProgressReporter, only: Sequence[str] = ()
) -> Evaluation:
    """Applies the measures of a study to trained runs, or only the named ones."""
    data, lockstep, settings = training.data, training.lockstep, study.measure
    lockstep.refresh(data.train)  # a run that diverged has the encodings of its last checkpoint
    measures = declared(only) if only else of_settings(settings)
    total = progress_steps(measures, settings, len(cohort.runs))
    task = reporter.start(f"{cohort_label(study, cohort)}, measuring", total) if total else None

    def progress() -> None:
        if task is not None:
            task.advance()
        if reporter.stop_requested():
            raise Interrupted

    return evaluate(trained_runs(lockstep, training.streams, data, settings, cohort.shared, progress), measures)


def measuring_steps(study: Study, cohort: Cohort, only: Sequence[str] = ()) -> int:
    """Steps of progress that measures report for a cohort."""
    return progress_steps(declared(only) if only else of_settings(study.measure), study.measure, len(cohort.runs))


def cohort_label(study: Study, cohort: Cohort) -> str:
    """What distinguishes a cohort from the others of its study."""
    coordinates = {key: value for key, value in study.coordinates(cohort.shared).items() if key not in PER_RUN}
    name = ", ".join(f"{key} {value}" for key, value in coordinates.items()) or study.name
    return f"{name}, part {cohort.name}" if cohort.cut else name
