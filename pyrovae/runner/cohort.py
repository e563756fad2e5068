"""One cohort, from its initial weights to its numbers."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from pyrovae.build import check_weights, make_data, make_likelihood, make_pair, own_sources
from pyrovae.data import Dataset, as_input
from pyrovae.errors import InputError, OutOfMemoryError, UnsupportedError
from pyrovae.measures.evaluate import DistortionReference, Evaluation, evaluate
from pyrovae.measures.likelihood import PASSES
from pyrovae.programs.noise import fork_seed
from pyrovae.programs.pair import Checked, Pair
from pyrovae.store import records
from pyrovae.store.results import CohortResult, Results
from pyrovae.study.grid import PER_RUN, Cohort, Run, Study
from pyrovae.system import atomic, memory
from pyrovae.system.progress import Watch, Watching
from pyrovae.system.provenance import process_name, software_versions
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.precision import matmul_precision
from pyrovae.training.streams import Streams
from pyrovae.training.trainer import Compile, Interrupted, Training, history

#: Share of the free memory that a cohort may take.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class CohortPaths:
    """Where the files of a cohort are.

    Attributes:
        checkpoint: of its weights.
        details: of its images, and of what there is to see.
        lock: which tells other processes that one is at work on it.
    """

    checkpoint: Path
    details: Path
    lock: Path

    @classmethod
    def of(cls, results: Results, cohort: Cohort) -> "CohortPaths":
        """In the folder of the study."""
        checkpoint, details = results.checkpoint_file(cohort), results.details_file(results.tree, cohort)
        return cls(checkpoint.resolve(), details.resolve(), results.lock_file(cohort).resolve())

    def elsewhere(self, folder: Path) -> "CohortPaths":
        """The same in another folder."""
        return CohortPaths(folder / self.checkpoint.name, folder / self.details.name, folder / self.lock.name)


def run(
    study: Study, cohort: Cohort, places: CohortPaths, device: torch.device, compile: Compile, watch: Watching
) -> CohortResult:
    """Trains a cohort to its end, from its checkpoint if there is one, measures it, and writes its files.

    Raises:
        Interrupted: it was asked to stop; the checkpoint holds the steps done.
        OutOfMemoryError: it would take more memory than is free.
    """
    waiting = False

    def wait() -> bool:
        nonlocal waiting
        if not waiting:
            watch.note(f"{label(study, cohort)}: waits for another process that is at work on it")
        waiting = True
        return not watch.stopped()

    with atomic.held(places.lock, wait) as has:
        if not has:
            raise Interrupted
        return _run(study, cohort, places, device, compile, watch)


def _run(
    study: Study, cohort: Cohort, places: CohortPaths, device: torch.device, compile: Compile, watch: Watching
) -> CohortResult:
    check_precision(cohort, device)
    training, checked = start(study, cohort, make_data(cohort.shared).to(device))
    if places.checkpoint.exists():
        training.resume(places.checkpoint)
        watch.note(f"{label(study, cohort)}: goes on from step {training.step:,}")
    before = time.perf_counter()
    watcher = watch.begin(label(study, cohort), cohort.shared.steps, training.step)
    training.run(every=study.checkpoint_every, file=places.checkpoint, compile=compile, watcher=watcher)
    seconds = time.perf_counter() - before
    measured = measure(study, cohort, training, watch)
    records.save(places.details, study, cohort, measured)
    for note in sorted(set(measured.notes) - {""}):
        watch.note(f"{label(study, cohort)}: {note}")
    provenance = checked.told() | history(training.made) | {"seconds": seconds, "worker": process_name()}
    return CohortResult.of(training, measured, provenance)


def start(study: Study, cohort: Cohort, data: Dataset) -> tuple[Training, Checked]:
    """A cohort before its first step."""
    shared, device = cohort.shared, data.train.device
    _check_support(shared, data)
    check_weights(shared, data.event_shape)
    mean = data.mean().cpu()
    of_seed = {run.seed: make_pair(run, data.event_shape, mean, data.train).to(device) for run in cohort.runs}
    for pair in of_seed.values():
        pair.refresh(data.train)
    found = checked(of_seed[shared.seed], cohort, data)
    needed = len(cohort.runs) * bytes_of_a_run(of_seed[shared.seed], cohort, data)
    memory.check_memory(needed, f"{len(cohort.runs)} runs in lockstep", device, share=MEMORY_SHARE)
    if study.measure.temperatures:
        _check_annealing(of_seed[shared.seed], as_input(data.train[: shared.batch_size]))
    weights = [run.weights() for run in cohort.runs]
    values = {name: torch.tensor([each[name] for each in weights]).to(device) for name in weights[0]}
    lockstep = Lockstep([of_seed[run.seed] for run in cohort.runs], values, shared.precision)
    seeds = [run.seed for run in cohort.runs]
    streams = Streams(seeds, len(data.train), shared.batch_size, found.noise_shapes, device)
    versions = ", ".join([software_versions(), *own_sources(shared)])
    return Training(lockstep, streams, data, cohort, study.measure, versions), found


def check_precision(cohort: Cohort, device: torch.device) -> None:
    """Raises InputError if a cohort cannot be trained on a device in the precision that it asks for."""
    if cohort.shared.precision == "tf32" and device.type != "cuda":
        raise InputError(f"precision: tf32 is for GPUs, got the device {device}; take float32, or --device cuda")


def checked(pair: Pair, cohort: Cohort, data: Dataset) -> Checked:
    """What the first batch tells about a pair."""
    batch = _first_batch(cohort, data)
    return pair.check(batch, beta=0.5, gamma=0.25, index=torch.arange(len(batch), device=batch.device))


def _first_batch(cohort: Cohort, data: Dataset) -> Tensor:
    return as_input(data.train[: cohort.shared.batch_size])


def bytes_of_a_run(pair: Pair, cohort: Cohort, data: Dataset) -> int:
    """Memory that training takes for each run of a cohort.

    Weights, gradients and both moments; the rehearsal of a step or the checkpoint, of three of these; what a pair holds
    beside weights, twice in the rehearsal; and a batch on its way there and back, where about twice as much is made as
    the way there keeps for the way back.
    """
    kept, x = 0, _first_batch(cohort, data)

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), fork_seed(0):
        pair(x, index=torch.arange(len(x), device=x.device))
    weights, held = (sum(each.nbytes for each in tensors) for tensors in (pair.parameters(), pair.buffers()))
    return (4 + 3) * weights + 2 * held + 3 * kept


@matmul_precision("float32")
def measure(study: Study, cohort: Cohort, training: Training, watch: Watching) -> Evaluation:
    """What is measured on trained runs."""
    data, lockstep, steps = training.data, training.lockstep, count(1)
    lockstep.refresh(data.train)  # a run that diverged came back with the encodings of its last checkpoint
    pixels = _pixels(cohort.shared, data)
    if not study.measure.temperatures:
        return evaluate(lockstep, training.streams, data, pixels, study.measure)
    watcher = watch.begin(f"{label(study, cohort)}, annealing", annealing(study, cohort), 0)

    def stepped() -> None:
        watcher.stepped(next(steps))
        if watcher.stopped():
            raise Interrupted

    return evaluate(lockstep, training.streams, data, pixels, study.measure, stepped)


def annealing(study: Study, cohort: Cohort) -> int:
    """Steps of annealing that it takes to measure a cohort."""
    return PASSES * study.measure.temperatures * len(cohort.runs)


class _Unknown:
    """A likelihood inside a pair of the user's own, of which nothing is known."""

    def floor(self, x: Tensor) -> Tensor:
        return x.new_full((len(x),), torch.nan)

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        return self.floor(x)


def _pixels(run: Run, data: Dataset) -> DistortionReference:
    return make_likelihood(run, data.event_shape) if run.pair is None else _Unknown()


def _check_annealing(pair: Pair, x: Tensor) -> None:
    """Raises InputError if log p(x) of a pair cannot be annealed to."""
    try:
        q, _ = pair.latent(x)
        pair.likelihood(x, q.sample())
    except UnsupportedError as error:
        raise InputError(f"temperatures: no annealing for such pairs: {error}") from None


def _check_support(run: Run, data: Dataset) -> None:
    """Raises InputError if the likelihood gives the data no density, which training would find out at its end."""
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


def halves(results: Results, cohort: Cohort, reason: str, steps: Callable[[Cohort], int], watch: Watch) -> list[Cohort]:
    """The halves of a cohort that ran out of memory, each with its part of the checkpoint if there is one.

    Raises:
        OutOfMemoryError: it has a single run.
    """
    told = label(results.study, cohort)
    if len(cohort.runs) == 1:
        raise OutOfMemoryError(f"{told}: expected one run to fit into memory, but {reason}")
    halves = results.cut(cohort)
    watch.drop(told)
    watch.more(sum(map(steps, halves)) - steps(cohort))
    watch.note(f"{told}: goes on in two halves, because {reason}")
    return halves


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def label(study: Study, cohort: Cohort) -> str:
    """What sets a cohort apart from the others of its study."""
    place = {key: value for key, value in study.coordinates(cohort.shared).items() if key not in PER_RUN}
    name = ", ".join(f"{key} {value}" for key, value in place.items()) or study.name
    return f"{name}, part {cohort.name}" if cohort.cut else name
