"""What the rest of a study will take: time, disk and memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from pyrovae.build import make_data
from pyrovae.data import CohortData, Dataset
from pyrovae.measures.declared import of_settings
from pyrovae.measures.measure import PER_IMAGE_DIMS
from pyrovae.measures.pictures import LATENTS, PIXEL_DIMS, SAMPLES
from pyrovae.runner.jobs import Job
from pyrovae.runner.plan import PlannedCohort
from pyrovae.runner.setup import MEMORY_SHARE, bytes_of_a_run, check_precision, start
from pyrovae.runner.speed import Speed, Speeds, step_time
from pyrovae.store.checkpoint import load_header
from pyrovae.store.records import SPLITS
from pyrovae.study import Cohort, Measure, Run, parameters_of
from pyrovae.system.device import find_device
from pyrovae.system.execution import Compile, Execution, ExecutionMode
from pyrovae.system.memory import free_memory
from pyrovae.training.modes import candidate_modes
from pyrovae.training.trainer import Training

#: Images of each split in a trial, unless batches are larger or a component holds images.
FEW = 256
#: Seconds that trials take, all together.
TRIAL = 2.0


@dataclass(frozen=True)
class Estimate:
    """What the rest of a study will take.

    Attributes:
        training, measuring: seconds on this machine; None if unknown.
        disk: bytes that new runs take.
        memory: most bytes at a time.
        notes: what these are based on.

    Example:
        >>> print(*Estimate(150.0, 30.0, 2**29, 2**30, ("time: as fast as here before",)).lines(), sep="\\n")
        to do: about 3 min, 512 MB on disk, 1.0 GB of memory
          time: as fast as here before
    """

    training: float | None
    measuring: float | None
    disk: float
    memory: float
    notes: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The estimate as text."""
        yield f"to do: {self._time()}, {_size(self.disk)} on disk, {_size(self.memory)} of memory"
        yield from (f"  {note}" for note in self.notes)

    def _time(self) -> str:
        if self.training is None:
            return "training of unknown duration"
        if self.measuring is not None:
            return f"about {_duration(self.training + self.measuring)}"
        return f"about {_duration(self.training)} of training" if self.training else "measuring of unknown duration"


def estimate(
    measure: Measure, planned: Sequence[PlannedCohort], folder: Path, execution: Execution, *, trial: bool
) -> Estimate:
    """What the rest of a study will take, from the speed of earlier runs on this machine.

    Args:
        planned: what is left to do.
        folder: of the study.
        trial: whether to train some steps where that speed is unknown.

    Raises:
        InputError: a pair cannot be set up, or a single run does not fit into memory.
    """
    estimator = _Estimator(measure, folder, execution)
    left = [(cohort, job) for cohort in planned for job in cohort.left]
    costs = [estimator.cost(cohort, job, TRIAL / len(left) if trial else 0.0) for cohort, job in left]
    memory = max(cost.memory for cost in costs)
    return Estimate(
        training=_sum([cost.training for cost in costs]),
        measuring=_sum([cost.measuring for cost in costs]),
        disk=sum(cost.disk for cost in costs),
        memory=memory,
        notes=(_note_on_time(costs, execution), *_notes_on_memory(memory, estimator.device)),
    )


class _Cost(NamedTuple):
    """What a job takes; `tried` is the execution mode whose unknown speed that of uncompiled steps stands for."""

    training: float | None
    tried: ExecutionMode | None
    measuring: float | None
    disk: float
    memory: float


class _Estimator:
    def __init__(self, measure: Measure, folder: Path, execution: Execution) -> None:
        self.device = find_device(execution.device if execution.scheduler is None else "cpu")
        self._measure, self._folder, self._execution = measure, folder, execution
        self._speeds = Speeds(self.device)

    def cost(self, planned: PlannedCohort, job: Job, trial: float) -> _Cost:
        """What a job takes, from a trial of so many seconds if its speed is unknown."""
        run, runs = job.cohort.shared, len(job.cohort.runs)
        if self._execution.scheduler is None:
            check_precision(job.cohort, self.device)
        training, _ = start(self._measure, Cohort((run,)), CohortData(_few_images(run).to(self.device)))
        size = bytes_of_a_run(training.lockstep.pair(0), training.cohort, training.data)
        mode = _mode(job, self._folder, self.device, self._execution.compile)
        speed, tried = self._speeds.of_training(job.cohort, mode), None
        if speed is None and trial and job.step < job.steps:
            speed, tried = Speed(each=self._tried(training, runs, size, trial)), mode
        measuring = self._speeds.of_measuring(run, self._measure)
        disk = runs * (_bytes_of_weights(training) + _bytes_of_a_record(self._measure, training.data.images))
        return _Cost(
            training=_seconds(speed, job.steps - job.step),
            tried=tried,
            measuring=_seconds(measuring, runs),
            disk=0.0 if job.step else disk,
            memory=runs * size + _bytes_of_images(training.data.images, planned),
        )

    def _tried(self, training: Training, runs: int, size: int, seconds: float) -> float:
        """Seconds of an uncompiled step of so many runs: one after the other if all together would be too much."""
        alone = step_time(training, seconds / 2)
        if runs == 1 or runs * alone > seconds or runs * size > MEMORY_SHARE * free_memory(self.device):
            return runs * alone
        together, _ = start(self._measure, Cohort(training.cohort.runs * runs), training.data)
        return step_time(together, seconds / 2)


def _mode(job: Job, folder: Path, device: torch.device, compile: Compile) -> ExecutionMode:
    """The execution mode that a job tries first."""
    before = load_header(folder / job.files[0])[0].environments if job.files else []
    return candidate_modes(device, job.steps, compile, before[-1].mode if before else None)[0]


def _few_images(run: Run) -> Dataset:
    """Some images of a run; all where a component holds training images or their encodings."""
    holds = any({"encode", "images"} & parameters_of(run, kind) for kind in ("model", "prior") if kind in run.kinds)
    return make_data(run, None if holds else max(FEW, run.batch_size))


def _bytes_of_images(few: Dataset, planned: PlannedCohort) -> float:
    train = sum(each[0].nbytes for each in (few.train, few.grey) if each is not None)
    return planned.train_images * train + planned.test_images * few.test[0].nbytes


def _bytes_of_weights(training: Training) -> float:
    """Bytes of the file with the weights of a run; with a tail, it holds the state before that, too."""
    groups = training.checkpoint().groups.values()
    states = 1 if training.cohort.shared.branch_step is None else 2
    return states * sum(tensor.nbytes for group in groups for tensor in group.values())


def _bytes_of_a_record(measure: Measure, few: Dataset) -> float:
    """Bytes of the values per image and the pictures of a run, before compression."""
    quantities = [each for declared in of_settings(measure) for each in declared.quantities]
    values = sum(each.per_image or each.dims == PER_IMAGE_DIMS for each in quantities)
    pictures = sum(
        SAMPLES * (LATENTS if "rank" in each.dims else 1)
        for each in quantities
        if each.dims[-len(PIXEL_DIMS) :] == PIXEL_DIMS
    )
    return 8 * len(SPLITS) * values * measure.per_image + pictures * few.event_shape.numel()


def _seconds(speed: Speed | None, number: int) -> float | None:
    if not number:
        return 0.0
    return None if speed is None else speed.seconds(number)


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None


def _note_on_time(costs: Sequence[_Cost], execution: Execution) -> str:
    training, measuring = _sum([cost.training for cost in costs]), _sum([cost.measuring for cost in costs])
    if execution.scheduler is not None:
        return "time: it depends on the workers"
    if training is None:
        return "time: no such runs were trained on this machine yet; --plan tries some steps"
    if not training and measuring is None:
        return "time: no such runs were measured on this machine yet"
    tried = {cost.tried for cost in costs} - {None}
    basis = "from a trial" if tried else "from earlier runs on this machine"
    faster = "; compiled, it is usually faster" if tried - {"vmapped", "sequential"} else ""
    return f"time: {basis}{faster}{'; measuring comes on top' if measuring is None else ''}"


def _notes_on_memory(needed: float, device: torch.device) -> Iterator[str]:
    free = MEMORY_SHARE * free_memory(device)
    if needed > free:
        yield f"memory: {_size(free)} may be used, so that cohorts are split until they fit"


def _size(size: float) -> str:
    return f"{size / 2**30:,.1f} GB" if size >= 2**30 else f"{size / 2**20:,.0f} MB"


def _duration(seconds: float) -> str:
    """A rounded duration.

    Example:
        >>> [_duration(seconds) for seconds in (0.2, 40, 400, 40_000, 4_000_000)]
        ['1 s', '40 s', '7 min', '11.1 h', '46 days']
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86_400:,.0f} days"
