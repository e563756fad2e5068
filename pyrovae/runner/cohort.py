"""One cohort, from its initial weights to its measured numbers."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae.build import assemble, check_weights, make_data, make_likelihood, user_sources
from pyrovae.data import Dataset, as_input
from pyrovae.errors import InputError, UnsupportedError
from pyrovae.measures.declared import declared, of_settings
from pyrovae.measures.evaluate import Evaluation, evaluate
from pyrovae.programs.checks import PairProperties
from pyrovae.programs.noise import fork_seed
from pyrovae.programs.pair import Pair
from pyrovae.runner.measuring import progress_steps, trained_runs
from pyrovae.store import records
from pyrovae.store.results import CohortResult, Results
from pyrovae.study import PER_RUN, Cohort, Run, Study
from pyrovae.system import atomic, memory
from pyrovae.system.execution import Compile
from pyrovae.system.progress import ProgressReporter
from pyrovae.system.provenance import history, process_name, software_versions
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.precision import matmul_precision
from pyrovae.training.streams import Streams
from pyrovae.training.trainer import Interrupted, Training

#: Largest share of the free memory that a cohort may take.
MEMORY_SHARE = 0.8


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
    waiting = False

    def wait() -> bool:
        nonlocal waiting
        if not waiting:
            progress.note(f"{cohort_label(study, cohort)}: waits for another process that is working on it")
        waiting = True
        return not progress.stop_requested()

    with atomic.exclusive(paths.lock, wait) as acquired:
        if not acquired:
            raise Interrupted
        return _train_and_measure(study, cohort, paths, device, compile, progress)


def _train_and_measure(
    study: Study,
    cohort: Cohort,
    paths: CohortPaths,
    device: torch.device,
    compile: Compile,
    progress: ProgressReporter,
) -> CohortResult:
    check_precision(cohort, device)
    label = cohort_label(study, cohort)
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


def cohort_result(training: Training, measured: Evaluation, provenance: dict[str, Any]) -> CohortResult:
    """Collects the results of a finished training, without per-image values and pictures."""
    curves = {name: torch.stack(points).numpy() for name, points in training.curves.items()}
    groups = {group: values for group, values in measured.groups.items() if group != "images"}
    small, divergence = measured._replace(groups=groups, pictures={}), training.divergence
    return CohortResult(small, curves, divergence.at.numpy(), divergence.last_loss.numpy(), provenance)


def start(study: Study, cohort: Cohort, data: Dataset) -> tuple[Training, PairProperties]:
    """Sets up the training of a cohort, and checks its pairs on a first batch.

    Returns:
        The training before its first step, and the properties of its pairs.
    """
    shared, device = cohort.shared, data.train.device
    _check_support(shared, data)
    check_weights(shared, data.event_shape)
    pairs = _pairs_by_seed(cohort, data)
    pair = pairs[shared.seed]
    properties = pair_properties(pair, cohort, data)
    needed = len(cohort.runs) * bytes_of_a_run(pair, cohort, data)
    memory.check_memory(needed, f"{len(cohort.runs)} runs in lockstep", device, share=MEMORY_SHARE)
    if study.measure.temperatures:
        _check_annealing(pair, _first_batch(cohort, data))
    weights = [run.weights() for run in cohort.runs]
    values = {name: torch.tensor([each[name] for each in weights]).to(device) for name in weights[0]}
    seeds = [run.seed for run in cohort.runs]
    lockstep = Lockstep([pairs[seed] for seed in seeds], values, shared.precision)
    streams = Streams(seeds, len(data.train), shared.batch_size, properties.noise_shapes, device)
    versions = ", ".join([software_versions(), *user_sources(shared)])
    return Training(lockstep, streams, data, cohort, study.measure, versions), properties


def _pairs_by_seed(cohort: Cohort, data: Dataset) -> dict[int, Pair]:
    """Pairs with initial weights and encodings; runs with the same seed share them."""
    mean, device = data.mean().cpu(), data.train.device
    pairs = {run.seed: assemble(run, data.event_shape, mean, data.train).to(device) for run in cohort.runs}
    for pair in pairs.values():
        pair.refresh(data.train)
    return pairs


def check_precision(cohort: Cohort, device: torch.device) -> None:
    """Raises InputError if a device does not support the precision of a cohort."""
    if cohort.shared.precision == "tf32" and device.type != "cuda":
        raise InputError(f"precision: tf32 is for GPUs, got the device {device}; take float32, or --device cuda")


def pair_properties(pair: Pair, cohort: Cohort, data: Dataset) -> PairProperties:
    """Properties of a pair, from the first batch."""
    batch = _first_batch(cohort, data)
    return pair.check(batch, beta=0.5, gamma=0.25, index=torch.arange(len(batch), device=batch.device))


def _first_batch(cohort: Cohort, data: Dataset) -> Tensor:
    return as_input(data.train[: cohort.shared.batch_size])


def bytes_of_a_run(pair: Pair, cohort: Cohort, data: Dataset) -> int:
    """Memory that training takes for each run of a cohort.

    It counts weights, gradients and both moments; three of these again for the rehearsal of a step or the checkpoint;
    buffers, again in the rehearsal; and the activations of a batch, with as much again for temporaries of the backward
    pass and half of that for its own results.
    """
    saved, x = 0, _first_batch(cohort, data)

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), fork_seed(0):
        pair(x, index=torch.arange(len(x), device=x.device))
    weights, buffers = (sum(each.nbytes for each in tensors) for tensors in (pair.parameters(), pair.buffers()))
    return (4 + 3) * weights + 2 * buffers + 3 * saved


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


def _check_annealing(pair: Pair, x: Tensor) -> None:
    """Raises InputError if log p(x) of a pair cannot be bounded by annealing."""
    try:
        q, _ = pair.latent(x)
        pair.likelihood(x, q.sample())
    except UnsupportedError as error:
        raise InputError(f"temperatures: this pair does not support annealing: {error}") from None


def _check_support(run: Run, data: Dataset) -> None:
    """Raises InputError if images are outside the support of the likelihood, before they are measured at the end."""
    if run.pair is not None:
        return
    support = make_likelihood(run, data.event_shape).support
    for _, images in data.splits():
        for chunk in images.split(4096):
            x = as_input(chunk)
            if not support.check(x).all():
                raise InputError(
                    f"likelihood: {run.likelihood} expects values in {support}, got {run.data} with values from "
                    f"{x.min():.3g} to {x.max():.3g}"
                )


def cohort_label(study: Study, cohort: Cohort) -> str:
    """What distinguishes a cohort from the others of its study."""
    coordinates = {key: value for key, value in study.coordinates(cohort.shared).items() if key not in PER_RUN}
    name = ", ".join(f"{key} {value}" for key, value in coordinates.items()) or study.name
    return f"{name}, part {cohort.name}" if cohort.cut else name
