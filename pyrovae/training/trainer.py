"""Training of one cohort: the loop, its checkpoints, and how it goes on from one."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pyrovae.data import Dataset
from pyrovae.errors import InputError
from pyrovae.measures.evaluate import terms_on
from pyrovae.study.grid import Cohort, Measure
from pyrovae.system import tensor_file
from pyrovae.system.device import device_name, to_device
from pyrovae.system.memory import freed_memory_kept, is_out_of_memory
from pyrovae.system.progress import Watcher
from pyrovae.training.adam import Adam, step_sizes
from pyrovae.training.lockstep import EXECUTION_MODES, Batch, ExecutionMode, Lockstep
from pyrovae.training.streams import Streams

Compile = Literal["auto", "always", "never"]
#: Under "auto", the steps from which compiling pays: the first time costs some 700, each later one some 200.
WORTH_COMPILING = 400


class Interrupted(KeyboardInterrupt):
    """The training was stopped; a checkpoint was saved."""


class Environment(BaseModel):
    """What the steps of a training depend on, other than its settings.

    Attributes:
        since: steps done when they began.
    """

    model_config = ConfigDict(frozen=True)
    since: int
    mode: ExecutionMode
    device: str
    threads: int
    versions: str

    def told(self) -> dict[str, str]:
        """All but when they began, as text."""
        return {name: str(value) for name, value in self if name != "since"}


def history(made: Sequence[Environment]) -> dict[str, str]:
    """What the steps of a training depended on, by name; what changed on the way is told one after the other.

    Example:
        >>> first = Circumstances(since=0, mode="vmapped", device="cpu", threads=1, versions="pyrovae 1")
        >>> later = first.model_copy(update={"since": 500, "threads": 2})
        >>> history([first, later])
        {'mode': 'vmapped', 'device': 'cpu', 'threads': '1, from step 500 on 2', 'versions': 'pyrovae 1'}
    """
    told = made[0].told()
    for before, after in pairwise(made):
        for name, value in after.told().items():
            if value != before.told()[name]:
                told[name] += f", from step {after.since:,} on {value}"
    return told


class CheckpointHeader(BaseModel):
    """What a checkpoint says of itself.

    Attributes:
        step: steps done.
        runs: settings of the runs.
        event_shape: of an image.
        images: checksum of the images.
        made: the circumstances that the steps were done under, one after the other.
    """

    model_config = ConfigDict(frozen=True)
    step: int = Field(ge=0)
    runs: list[dict[str, Any]]
    event_shape: list[Annotated[int, Field(ge=1, le=10**6)]] = Field(min_length=1, max_length=3)
    images: int
    made: list[Environment]

    @classmethod
    def of(cls, told: Any, cohort: Cohort, file: Path) -> "CheckpointHeader":
        """The facts in a checkpoint of a cohort.

        Raises:
            InputError: they are none, or of another cohort.
        """
        try:
            facts = cls.model_validate(told)
        except ValidationError as error:
            raise InputError(
                f"{file}: expected a checkpoint as this version writes it, got one with another "
                f"'{'.'.join(map(str, error.errors()[0]['loc']))}'; delete it to train its cohort anew"
            ) from error
        cohort.check(facts.runs, file)
        if facts.step > cohort.shared.steps:
            raise checkpoint_mismatch(file, "step")
        return facts


def checkpoint_mismatch(file: Path, name: str) -> InputError:
    """What is wrong with a checkpoint that lacks a tensor, or has another in its place."""
    return InputError(
        f"{file}: expected a checkpoint of this cohort, got one whose '{name}' is missing, has another shape or is not "
        "finite; delete it to train its cohort anew"
    )


def split_checkpoint(file: Path, cohort: Cohort, part: Cohort, to: Path) -> None:
    """Writes a checkpoint of some of the runs of a cohort, of that of them all.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is damaged, or of another cohort.
    """
    groups, told = tensor_file.load(file)
    CheckpointHeader.of(told, cohort, file)
    first = cohort.runs.index(part.runs[0])
    rows = slice(first, first + len(part.runs))

    def taken(group: str, tensor: Tensor) -> Tensor:
        if group == "curves":
            return tensor[..., rows] if tensor.ndim == 3 else tensor
        return tensor[rows] if tensor.ndim else tensor

    parts = {group: {name: taken(group, each) for name, each in tensors.items()} for group, tensors in groups.items()}
    tensor_file.save(to, parts, told | {"runs": part.record()})


class Training:
    """Where the training of a cohort stands.

    Args:
        lockstep: the runs.
        streams: their random numbers.
        data: images on the device of the runs.
        cohort: their settings.
        measure: how many points the learning curves have, and on how many images they are.
        versions: of all code that the numbers depend on.

    Attributes:
        step: steps done.
        made: the circumstances that these were done under.
        diverged_at: steps done when a run's loss was first not finite, ``[runs]``; −1 where it always was.
        last_loss: last finite loss of each run, ``[runs]``.
        curves: by name, one tensor a point: steps, and loss, distortion and rate, ``[split, runs]`` each.
    """

    def __init__(
        self, lockstep: Lockstep, streams: Streams, data: Dataset, cohort: Cohort, measure: Measure, versions: str
    ) -> None:
        self.lockstep = lockstep
        self.streams = streams
        self.data = data
        self.adam = Adam.of(lockstep.params)
        self.cohort = cohort
        self.measure = measure
        self.versions = versions
        self.step = 0
        self.made: list[Environment] = []
        self.diverged_at = torch.full((len(lockstep),), -1)
        self.last_loss = torch.full((len(lockstep),), float("nan"))
        self.curves: dict[str, list[Tensor]] = {"step": [], "loss": [], "distortion": [], "rate": []}

    @cached_property
    def checksum(self) -> int:
        """Tells other images from those that the training began with."""
        return self.data.checksum()

    def run(self, *, every: int, file: Path, compile: Compile, watcher: Watcher) -> None:
        """Trains to the end, leaving a checkpoint every ``every`` steps and there.

        Raises:
            Interrupted: SIGINT or SIGTERM came, or the watcher says stop; the checkpoint holds the steps done.
        """
        steps, due = self.cohort.shared.steps, self._probed()
        losses: list[Tensor] = []
        # While the step is compiled too: an interrupt that is raised inside the compiler may be lost there.
        with _stop_requests() as stop, freed_memory_kept():
            if self.step == 0:
                self.save(file)
            if self.step < steps:
                step = self.stepper(compile, watcher)
            self._note_environment(watcher)
            while self.step < steps:
                losses.append(step())
                watcher.stepped(self.step)
                if self.step in due:
                    self._probe()
                if self.step == steps:
                    self.lockstep.refresh(self.data.train)
                stopped = stop.is_set() or watcher.stopped()
                if stopped or self.step % every == 0 or self.step == steps:
                    self._watch_for_divergence(losses)
                    losses.clear()
                    self.save(file)
                if stopped:
                    raise Interrupted
        self._restore_diverged(file)

    def stepper(self, compile: Compile, watcher: Watcher) -> Callable[[], Tensor]:
        """What takes a step with all runs and returns their losses, ``[runs]``; the way of it is decided here."""
        stepped = self._prepared(self.cohort.shared.steps, compile, watcher)

        def step() -> Tensor:
            self._refresh()
            losses = stepped(self._batch(self.step))
            self.step += 1
            return losses

        return step

    def save(self, file: Path) -> None:
        """Writes the checkpoint. A frozen run keeps the numbers of its last good one."""
        weights = self._weights()
        frozen = self.diverged_at >= 0
        if frozen.any():
            good, _ = tensor_file.load(file)
            for group, tensors in weights.items():
                for name, tensor in tensors.items():
                    tensors[name] = tensor.cpu().clone()
                    tensors[name][frozen] = good[group][name][frozen]
        record = {"diverged_at": self.diverged_at, "last_loss": self.last_loss}
        curves = {name: torch.stack(values) for name, values in self.curves.items() if values}
        groups = {**weights, **self._moments(), "record": record, "curves": curves}
        facts = {
            "step": self.step,
            "runs": self.cohort.record(),
            "event_shape": list(self.data.event_shape),
            "images": self.checksum,
            "made": [each.model_dump() for each in self.made],
        }
        tensor_file.save(file, groups, facts)

    def resume(self, file: Path) -> None:
        """Goes back to where a checkpoint was written.

        Raises:
            FileNotFoundError: there is none.
            InputError: it is damaged, of another cohort, or of one that began with other images.
        """
        groups, told = tensor_file.load(file)
        facts = CheckpointHeader.of(told, self.cohort, file)
        if facts.images != self.checksum:
            raise InputError(
                f"{file}: expected the images that this cohort began with, but the data set "
                f"'{self.cohort.shared.data}' gives others now; bring the old ones back, or choose another --out"
            )

        def taken(group: str, name: str, like: Tensor) -> Tensor:
            tensor = groups.get(group, {}).get(name)
            if tensor is None or (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
                raise checkpoint_mismatch(file, f"{group}/{name}")
            return tensor.to(like.device)

        for group, state in (self._weights() | self._moments()).items():
            for name, tensor in state.items():
                tensor.copy_(taken(group, name, tensor))
                if group == "params" and not tensor.isfinite().all():
                    raise checkpoint_mismatch(file, f"params/{name}")
        self.diverged_at = taken("record", "diverged_at", self.diverged_at)
        self.last_loss = taken("record", "last_loss", self.last_loss)
        steps = [step for step in self._probed() if step <= facts.step]
        if steps:
            cells = torch.empty(len(steps), len(self.data.splits()), len(self.lockstep), dtype=torch.float64)
            for name in ("loss", "distortion", "rate"):
                self.curves[name] = list(taken("curves", name, cells))
            self.curves["step"] = list(torch.tensor(steps))
        self.step, self.made = facts.step, facts.made
        self.lockstep.mode = self.made[-1].mode if self.made else None

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """Parameters and buffers, without buffers that are the same constants in all pairs."""
        kept = self.lockstep.template.state_dict()
        buffers = {name: tensor for name, tensor in self.lockstep.buffers.items() if name in kept}
        return {"params": dict(self.lockstep.params), "buffers": buffers}

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        return {"adam.exp_avg": self.adam.exp_avg, "adam.exp_avg_sq": self.adam.exp_avg_sq}

    def _probed(self) -> list[int]:
        """The steps at which the learning curves have a point."""
        return probe_steps(self.cohort.shared.steps, self.measure.points)

    def environment(self) -> Environment:
        """What steps done now would depend on."""
        mode = self.lockstep.mode
        assert mode is not None, "it is decided before the first step"
        device, threads = device_name(self.data.train.device), torch.get_num_threads()
        return Environment(since=self.step, mode=mode, device=device, threads=threads, versions=self.versions)

    def _note_environment(self, watcher: Watcher) -> None:
        """Records what the steps to come depend on, and says so where it is not what those before depended on."""
        now = self.environment()
        if not self.made:
            self.made.append(now)
        before, after = self.made[-1].told(), now.told()
        if changed := [f"{name} {before[name]} → {after[name]}" for name in before if before[name] != after[name]]:
            watcher.note(f"from step {self.step:,} on with other {'; '.join(changed)}: last digits may differ")
            self.made.append(now)

    def _batch(self, step: int) -> Batch:
        grey = self.data.grey
        share = self.cohort.shared.beta_share(step)  # of γ too, so that their ratio stays
        return Batch(
            images=self.data.train if grey is None else grey,
            rows=self.streams.index(step),
            values={name: share * value for name, value in self.lockstep.values.items()},
            noise=self.streams.noise(step),
            step_sizes=to_device(step_sizes(self.cohort.shared.learning_rate, step + 1), self.data.train.device),
            thresholds=None if grey is None else self.streams.thresholds(step, grey.shape[1:]),
            keys=self.streams.keys("draws", step) if self.lockstep.mode == "sequential" else (),
        )

    def _prepared(self, steps: int, compile: Compile, watcher: Watcher) -> Callable[[Batch], Tensor]:
        """The function behind a step, computed as was asked for or in the next best way that works."""
        ways = self._ways(self.data.train.device, steps, compile, watcher)
        for mode, fallback in zip(ways, [*ways[1:], None], strict=True):
            try:
                stepped = self.lockstep.stepper(mode, self.adam, self._batch(self.step))
                break
            except Exception as error:
                if fallback is None or is_out_of_memory(error):
                    raise
                watcher.note(f"not {mode}, so {fallback}: {_first_line(error)}")
        return stepped

    def _ways(self, place: torch.device, steps: int, compile: Compile, watcher: Watcher) -> Sequence[ExecutionMode]:
        """The ways to try, in this order. A resumed cohort goes on as it began, where the device can do that."""
        if not self.streams.vmappable:
            watcher.note(
                "cannot vmap: the guide is not reparameterized from normal noise; training the runs one by one"
            )
            return ["sequential"]
        first: ExecutionMode = "cuda_graph" if place.type == "cuda" else "compiled"
        ways = EXECUTION_MODES[EXECUTION_MODES.index(first) :]
        began = first if self.lockstep.mode in ("cuda_graph", "compiled") else self.lockstep.mode
        if began is not None:
            if compile == "never" and began == first:
                watcher.note(f"{began} as it began: a cohort that goes on does not change its way")
            return ways[ways.index(began) :]
        worth_it = compile == "always" or (compile == "auto" and steps >= WORTH_COMPILING)
        return ways if worth_it else ways[ways.index("vmapped") :]

    def _refresh(self) -> None:
        """Renews encodings that the programs hold, at the steps at which it is due."""
        if any(self.step % bank.interval == 0 for bank in self.lockstep.template.banks):
            self.lockstep.refresh(self.data.train, self.streams.keys("bank", self.step))

    def _probe(self) -> None:
        """Adds a point to the learning curves. Training goes on with the encodings that it had."""
        held = {name: buffer.clone() for name, buffer in self.lockstep.buffers.items()}
        self.lockstep.refresh(self.data.train)
        splits = [
            terms_on(name, images[: self.measure.probe], self.lockstep, self.streams, "probe")
            for name, images in self.data.splits()
        ]
        for name, buffer in self.lockstep.buffers.items():
            buffer.copy_(held[name])
        self.curves["step"].append(torch.tensor(self.step))
        for name in ("loss", "distortion", "rate"):
            self.curves[name].append(torch.stack([getattr(terms, name).mean(1) for terms in splits]))

    def _watch_for_divergence(self, losses: list[Tensor]) -> None:
        """Marks the runs in which something has ceased to be finite; ``losses`` are those of the last steps.

        Where a square of a gradient is infinite, Adam leaves the weight as it is for good, without a sign of it.
        """
        history = torch.stack(losses).cpu()
        first = self.step - len(history)
        states = [*self.lockstep.params.values(), *self.adam.exp_avg_sq.values()]
        sound = [value.reshape(len(value), -1).isfinite().all(1) for value in states]
        healthy = torch.stack(sound).all(0).cpu()
        for run in (self.diverged_at < 0).nonzero().flatten().tolist():
            finite = history[:, run].isfinite()
            if not finite.all():
                self.diverged_at[run] = first + int(finite.int().argmin())
            elif not healthy[run]:
                self.diverged_at[run] = self.step
            good = history[: self.diverged_at[run] - first, run] if self.diverged_at[run] >= 0 else history[:, run]
            if len(good):
                self.last_loss[run] = good[-1]

    def _restore_diverged(self, file: Path) -> None:
        """Gives frozen runs the weights of their last good checkpoint back."""
        frozen = (self.diverged_at >= 0).nonzero().flatten()
        if len(frozen):
            groups, _ = tensor_file.load(file)
            for group, state in self._weights().items():
                for name, tensor in state.items():
                    tensor[frozen] = groups[group][name][frozen].to(tensor.device)


def probe_steps(steps: int, points: int) -> list[int]:
    """Steps at which the learning curves have a point, spaced logarithmically, the last one included.

    Example:
        >>> probe_steps(100, 5)
        [1, 3, 10, 32, 100]
    """
    return sorted({int(step) for step in np.geomspace(1, steps, points).round()})


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one acts as usual. Only the main thread may listen."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, usual[signal.Signals(number)])

    for number in usual:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
