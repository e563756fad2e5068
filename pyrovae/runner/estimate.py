"""What the rest of a study will take: time, disk and memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pyrovae.build import make_data
from pyrovae.data import CohortData, Dataset
from pyrovae.measures.declared import of_settings
from pyrovae.measures.measure import PER_IMAGE_DIMS
from pyrovae.measures.pictures import LATENTS, PIXEL_DIMS, SAMPLES
from pyrovae.runner.cohort import job_label, measuring_steps
from pyrovae.runner.jobs import Job
from pyrovae.runner.plan import PlannedCohort
from pyrovae.runner.setup import MEMORY_SHARE, bytes_of_a_run, check_precision, start
from pyrovae.runner.speed import Speed, Speeds, measuring_time, step_time
from pyrovae.store.checkpoint import load_header
from pyrovae.study import Cohort, Measure, Run, Study, parameters_of
from pyrovae.system.device import find_device
from pyrovae.system.execution import Compile, Execution, ExecutionMode
from pyrovae.system.matmul import multiplied_by
from pyrovae.system.memory import free_memory
from pyrovae.system.progress import Expected, duration
from pyrovae.training.modes import candidate_modes
from pyrovae.training.trainer import Training

#: Training images in a trial, unless a component holds images or more are measured.
FEW = 8192
#: Runs that are measured for a time.
TIMED = 4
#: Seconds that trials of steps take, all together.
TRIAL = 2.0
#: Where compiled steps were not tried: seconds to compile the first job's and each later one's, and the time of a step
#: as a share of the uncompiled one.
COMPILING, COMPILED = (11.0, 5.0), 0.7


@dataclass(frozen=True)
class Cost:
    """What a job takes.

    Attributes:
        compiling, training, measuring: seconds on this machine; steps if workers of a cluster do it.
        disk: bytes that new runs take.
        size: bytes of memory that each run takes.
        images: bytes of memory that the images take.
        tried: whether the seconds are from a trial, at least in part.
    """

    job: Job
    compiling: float
    training: float
    measuring: float
    disk: float
    size: int
    images: float
    tried: bool

    @property
    def seconds(self) -> float:
        """Seconds of all parts."""
        return self.compiling + self.training + self.measuring

    @property
    def memory(self) -> float:
        """Bytes of memory of all runs together."""
        return len(self.job.cohort.runs) * self.size + self.images

    def parts(self, study: Study, job: Job) -> Iterator[Expected]:
        """What the job, or a part of it, is expected to take."""
        share, label = len(job.cohort.runs) / len(self.job.cohort.runs), job_label(study, job.cohort)
        yield Expected("compile", label, self.compiling)
        yield Expected("train", label, self.training * share)
        yield Expected("measure", label, self.measuring * share)


@dataclass(frozen=True)
class Estimate:
    """What the rest of a study will take.

    Attributes:
        costs: what each job takes.
        drawing: seconds for figures and report.
        device: where it runs; None if workers of a cluster decide.

    Example:
        >>> print(*Estimate((), 20.0, None).lines(), sep="\\n")
        to do: 0 MB on disk, 0 MB of memory; the time depends on the workers
    """

    costs: tuple[Cost, ...]
    drawing: float
    device: torch.device | None

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        return sum(cost.seconds for cost in self.costs) + self.drawing

    @property
    def memory(self) -> float:
        """Most bytes of memory at a time."""
        return max((cost.memory for cost in self.costs), default=0.0)

    def lines(self) -> Iterator[str]:
        """The estimate as text."""
        room = f"{_size(sum(cost.disk for cost in self.costs))} on disk, {_size(self.memory)} of memory"
        if self.device is None:
            yield f"to do: {room}; the time depends on the workers"
            return
        basis = "a trial" if any(cost.tried for cost in self.costs) else "earlier runs on this machine"
        yield f"to do: about {duration(self.seconds)} (from {basis}), {room}"
        free = MEMORY_SHARE * free_memory(self.device)
        if self.memory > free:
            yield f"  {_size(free)} of memory may be used, so that cohorts are split until they fit"


def estimate(study: Study, planned: Sequence[PlannedCohort], folder: Path, execution: Execution) -> Estimate:
    """What the rest of a study will take, from the speed of earlier runs on this machine, or else of a trial.

    Args:
        planned: what is left to do.
        folder: of the study.

    Raises:
        InputError: a pair cannot be set up, a measure fails, or a single run does not fit into memory.
    """
    estimator = _Estimator(study, folder, execution)
    left = [(cohort, job) for cohort in planned for job in cohort.left]
    with multiplied_by(execution.matmul):
        costs = tuple(estimator.cost(cohort, job, TRIAL / len(left)) for cohort, job in left)
    drawing = estimator.speeds.of_drawing(sum(cohort.runs for cohort in planned))
    return Estimate(costs, drawing, estimator.device if execution.scheduler is None else None)


class _Estimator:
    def __init__(self, study: Study, folder: Path, execution: Execution) -> None:
        self.device = find_device(execution.device if execution.scheduler is None else "cpu")
        self.speeds = Speeds(self.device)
        self._study, self._measure = study, study.measure
        self._folder, self._execution = folder, execution
        self._measuring, self._compiled = 0.0, False

    def cost(self, planned: PlannedCohort, job: Job, trial: float) -> Cost:
        """What a job takes, from a trial of so many seconds if its speed is unknown."""
        run, runs = job.cohort.shared, len(job.cohort.runs)
        if self._execution.scheduler is None:
            check_precision(job.cohort, self.device)
        training, _ = start(self._measure, Cohort((run,)), CohortData(_few_images(run, self._measure).to(self.device)))
        size = bytes_of_a_run(training.lockstep.pair(0), training.cohort, training.data)
        disk = runs * (_bytes_of_weights(training) + _bytes_of_a_record(self._measure, training.data.images))
        images = _bytes_of_images(training.data.images, planned)
        if self._execution.scheduler is not None:
            work = job.steps - job.step, measuring_steps(self._study, job.cohort)
            return Cost(job, 0.0, *work, 0.0 if job.step else disk, size, images, tried=False)
        mode = _mode(job, self._folder, self.device, self._execution.compile)
        kept, measuring = self.speeds.of_training(job.cohort, mode), self.speeds.of_measuring(run, self._measure)
        tried = measuring is None or (kept is None and job.step < job.steps)
        speed = kept or (self._tried(training, runs, size, trial, mode) if job.step < job.steps else Speed(each=1.0))
        if measuring is None:  # one trial stands for all jobs
            if not self._measuring:
                runs_timed = TIMED if self._fit(TIMED, size) else 1
                several, _ = start(self._measure, Cohort((run,) * runs_timed), training.data)
                self._measuring = measuring_time(several, self._measure, planned.train_images)
            measuring = Speed(each=self._measuring)
        steps = job.steps - job.step
        return Cost(
            job=job,
            compiling=speed.first if steps else 0.0,
            training=speed.each * steps,
            measuring=measuring.each * runs,
            disk=0.0 if job.step else disk,
            size=size,
            images=images,
            tried=tried,
        )

    def _tried(self, training: Training, runs: int, size: int, seconds: float, mode: ExecutionMode) -> Speed:
        """The speed of steps of so many runs, from uncompiled ones."""
        each = self._uncompiled(training, runs, size, seconds)
        if mode != "compiled":
            return Speed(each=each)
        first, self._compiled = COMPILING[self._compiled], True
        return Speed(first=first, each=COMPILED * each)

    def _uncompiled(self, training: Training, runs: int, size: int, seconds: float) -> float:
        """Seconds of an uncompiled step of so many runs: one after the other if all together would be too much."""
        alone = step_time(training, seconds / 2)
        if runs == 1 or runs * alone > seconds or not self._fit(runs, size):
            return runs * alone
        together, _ = start(self._measure, Cohort(training.cohort.runs * runs), training.data)
        return step_time(together, seconds / 2)

    def _fit(self, runs: int, size: int) -> bool:
        """Whether so many runs fit into memory."""
        return runs * size <= MEMORY_SHARE * free_memory(self.device)


def _mode(job: Job, folder: Path, device: torch.device, compile: Compile) -> ExecutionMode:
    """The execution mode that a job tries first."""
    before = load_header(folder / job.files[0])[0].environments if job.files else []
    return candidate_modes(device, job.steps, compile, before[-1].mode if before else None)[0]


def _few_images(run: Run, measure: Measure) -> Dataset:
    """Some images of a run, at least those that are measured; all where a component holds images or their encodings."""
    holds = any({"encode", "images"} & parameters_of(run, kind) for kind in ("model", "prior") if kind in run.kinds)
    measured = measure.most_images
    return make_data(run) if holds else make_data(run, max(FEW, run.batch_size, 2 * measured), measured)


def _bytes_of_images(few: Dataset, planned: PlannedCohort) -> float:
    train = sum(each[0].nbytes for each in (few.train, few.grey) if each is not None)
    return planned.train_images * train + (planned.test_images + planned.validation_images) * few.test[0].nbytes


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
    return 8 * len(few.splits()) * values * measure.per_image + pictures * few.event_shape.numel()


def _size(size: float) -> str:
    return f"{size / 2**30:,.1f} GB" if size >= 2**30 else f"{size / 2**20:,.0f} MB"
