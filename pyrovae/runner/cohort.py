"""One job, from the state that its runs have to the records of what was measured on them."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from pyrovae.build import class_names, make_cohort_data
from pyrovae.measures.declared import declared, of_settings
from pyrovae.measures.evaluate import Measurements
from pyrovae.runner.jobs import Job
from pyrovae.runner.measuring import measured_runs, progress_steps
from pyrovae.runner.setup import check_precision, start
from pyrovae.runner.speed import Speeds
from pyrovae.store import records
from pyrovae.store.checkpoint import load_header
from pyrovae.store.layout import METRICS, RunFolder, moving_checkpoint
from pyrovae.store.results import user_sources
from pyrovae.study import PER_RUN, Cohort, Study
from pyrovae.study.files import to_yaml
from pyrovae.system import atomic
from pyrovae.system.execution import Compile
from pyrovae.system.progress import ProgressReporter
from pyrovae.system.provenance import history, process_name
from pyrovae.training.trainer import Callback, Interrupted, Metrics, Training


def run_job(
    study: Study,
    job: Job,
    folder: Path,
    device: torch.device,
    compile: Compile,
    progress: ProgressReporter,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Trains the runs of a job to the end, measures them, and writes their weights and records.

    Args:
        folder: of the study, where the files of the runs are.
        callbacks: as of `Training.run`.

    Raises:
        Interrupted: the work was stopped; a checkpoint holds the steps done.
        OutOfMemoryError: it would take more memory than is free.
    """
    cohort, label = job.cohort, job_label(study, job.cohort)
    check_precision(cohort, device)
    training, properties = start(study.measure, cohort, make_cohort_data(cohort.runs).to(device))
    if (state := job.load(folder)) is not None:
        training.restore(state)
        if job.step < job.steps:
            progress.note(f"{label}: continues from step {job.step:,}")
    seconds = float("nan")
    if job.step < job.steps or any(file.parts[0] != "runs" for file in job.files):
        seconds = _train(study, job, training, folder, compile, progress, callbacks)
    training.measure_best()
    provenance = properties.as_provenance() | history(training.environments)
    facts = {**provenance, "seconds": seconds, "worker": process_name(), "classes": class_names(cohort.shared)}
    with Speeds(device).timing_measuring(cohort, study.measure):
        for number, measured in enumerate(measure(study, cohort, training, progress)):
            save_record(folder, study, training, number, measured, facts)
            if measured.note:
                progress.note(f"{label}: {measured.note}")


def _train(
    study: Study,
    job: Job,
    training: Training,
    folder: Path,
    compile: Compile,
    progress: ProgressReporter,
    callbacks: Sequence[Callback],
) -> float:
    """Trains to the last step and writes the weights of each run; the moving checkpoint goes after that."""
    moving = moving_checkpoint(folder, job.cohort.key)
    before = time.perf_counter()
    task = progress.start(job_label(study, job.cohort), job.steps, job.step)
    with Speeds(training.data.device).timing_training(training, compile, task):
        log = partial(_append, study, folder / METRICS)
        training.run(every=study.checkpoint_every, file=moving, compile=compile, task=task, callbacks=[log, *callbacks])
    seconds = time.perf_counter() - before
    trained = training.checkpoint()
    for key, run in zip(job.cohort.keys, job.cohort.runs, strict=True):
        place = RunFolder.of(folder, key)
        atomic.write(place.settings, to_yaml(run.model_dump()).encode())
        trained.select([key]).save(place.weights)
    moving.unlink(missing_ok=True)
    return seconds


def _append(study: Study, file: Path, metrics: Metrics) -> None:
    """Appends a line for each run to the log of a study; one that cannot be written does not stop the training."""
    lines = [
        json.dumps(study.coordinates(run) | row, ensure_ascii=False) + "\n"
        for run, row in zip(metrics.runs, metrics.rows(), strict=True)
    ]
    with suppress(OSError), file.open("a", encoding="utf-8") as opened:
        opened.write("".join(lines))


def save_record(
    folder: Path,
    study: Study,
    training: Training,
    number: int,
    measured: Measurements,
    facts: dict[str, Any],
    evaluation: str = "",
) -> None:
    """Writes the record of a run of a cohort.

    Args:
        number: of the run.
        facts: further fields of the header.
        evaluation: name of a later evaluation.
    """
    key, divergence = training.cohort.keys[number], training.divergence
    curves = {} if evaluation else training.curves_of(number)
    header = records.header_of(
        measured,
        key=key,
        cohort=training.cohorts[number],
        weights=load_header(RunFolder.of(folder, key).weights)[1],
        run=training.cohort.runs[number].model_dump(mode="json"),
        step=training.step,
        measured_step=training.measured_step(number),
        measure=study.measure.model_dump(mode="json"),
        diverged_at=int(divergence.at[number]),
        last_loss=float(divergence.last_loss[number]),
        **{"only": [], "sources": user_sources(study.measure), **facts},
    )
    records.save(RunFolder.of(folder, key).record(evaluation), header, measured, curves)


def measure(
    study: Study, cohort: Cohort, training: Training, reporter: ProgressReporter, only: Sequence[str] = ()
) -> Iterator[Measurements]:
    """Applies the measures of a study to trained runs one by one, or only the named measures."""
    training.lockstep.refresh(training.data)  # a run that diverged has the encodings of its last checkpoint
    measures = declared(only) if only else of_settings(study.measure)
    total = progress_steps(measures, study.measure, len(cohort.runs))
    task = reporter.start(job_label(study, cohort), total, phase="measure")

    def progress() -> None:
        task.advance()
        if reporter.stop_requested():
            raise Interrupted

    for measured in measured_runs(training, study.measure, measures, progress):
        progress()
        yield measured


def measuring_steps(study: Study, cohort: Cohort, only: Sequence[str] = ()) -> int:
    """Steps of progress of measuring a cohort."""
    return progress_steps(declared(only) if only else of_settings(study.measure), study.measure, len(cohort.runs))


def job_label(study: Study, cohort: Cohort) -> str:
    """What distinguishes a cohort from the others of its study."""
    coordinates = {key: value for key, value in study.coordinates(cohort.shared).items() if key not in PER_RUN}
    name = ", ".join(f"{key} {value}" for key, value in coordinates.items()) or study.name
    together = prod(len(values) for key, values in study.axes.items() if key in PER_RUN)
    return name if len(cohort.runs) == together else f"{name}, {len(cohort.runs)} of {together} runs"
