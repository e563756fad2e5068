"""Training of one cohort: the loop, its checkpoints, and how it goes on from one."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pyrovae import checkpoint
from pyrovae.data import Dataset
from pyrovae.errors import InputError
from pyrovae.evaluate import terms_on
from pyrovae.lockstep import Batch, Gradients, Lockstep, Way
from pyrovae.streams import Streams
from pyrovae.study import Cohort

Compile = Literal["auto", "always", "never"]
#: Under "auto", the steps from which compiling pays: it costs some 20 s and saves a quarter of a step or more.
WORTH_COMPILING = 400


class Interrupted(KeyboardInterrupt):
    """The user stopped the training; a checkpoint was saved."""


class Watcher(Protocol):
    """Is told how the training goes."""

    def stepped(self, step: int) -> None:
        """``step`` steps are done."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Training:
    """Where the training of a cohort stands.

    Args:
        lockstep: the runs.
        streams: their random numbers.
        data: images on the device of the runs.
        cohort: their settings.
        probe: images of each split behind the learning curves.

    Attributes:
        step: steps done.
        frozen_at: steps done when a run's loss was first not finite, ``[runs]``; −1 where it always was.
        last_loss: last finite loss of each run, ``[runs]``.
        curves: by name, one tensor a point: steps, and loss, distortion and rate, ``[split, runs]`` each.
    """

    def __init__(self, lockstep: Lockstep, streams: Streams, data: Dataset, cohort: Cohort, *, probe: int) -> None:
        self.lockstep = lockstep
        self.streams = streams
        self.data = data
        # Adam works on each element by itself, so one over the stacked parameters is one for every run.
        rate = cohort.shared.learning_rate
        self.optimizer = torch.optim.Adam(list(lockstep.params.values()), lr=rate, fused=True)
        self.cohort = cohort
        self.probe = probe
        self.step = 0
        self.frozen_at = torch.full((len(lockstep),), -1)
        self.last_loss = torch.full((len(lockstep),), float("nan"))
        self.curves: dict[str, list[Tensor]] = {"step": [], "loss": [], "distortion": [], "rate": []}

    @cached_property
    def checksum(self) -> int:
        """Tells other images from those that the training began with."""
        return self.data.checksum()

    def run(self, steps: int, *, points: int, every: int, file: Path, compile: Compile, watcher: Watcher) -> None:
        """Trains up to ``steps`` steps, leaving a checkpoint every ``every`` steps and at the end.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the checkpoint holds the steps done until then.
        """
        due = probe_steps(steps, points)
        losses: list[Tensor] = []
        # While the step is compiled too: an interrupt that is raised inside the compiler may be lost there.
        with _stop_requests() as stop:
            if self.step == 0:
                self.save(file)
            gradients = self._prepared(steps, compile, watcher)
            while self.step < steps:
                self._refresh()
                gradient, loss = gradients(self._batch(self.step))
                for name, parameter in self.lockstep.params.items():
                    parameter.grad = gradient[name]
                self.optimizer.step()
                losses.append(loss)
                self.step += 1
                watcher.stepped(self.step)
                if self.step in due:
                    self._probe()
                if self.step == steps:
                    self.lockstep.refresh(self.data.train)
                if stop.is_set() or self.step % every == 0 or self.step == steps:
                    self._watch_for_divergence(losses)
                    losses.clear()
                    self.save(file)
                if stop.is_set():
                    raise Interrupted
        self._restore_frozen(file)

    def save(self, file: Path) -> None:
        """Writes the checkpoint. A frozen run keeps the numbers of its last good one."""
        weights = {"params": dict(self.lockstep.params), "buffers": dict(self.lockstep.buffers)}
        frozen = self.frozen_at >= 0
        if frozen.any():
            good, _ = checkpoint.load(file)
            for group, tensors in weights.items():
                for name, tensor in tensors.items():
                    tensors[name] = tensor.cpu().clone()
                    tensors[name][frozen] = good[group][name][frozen]
        moments = {
            f"adam.{moment}": {
                name: self.optimizer.state[tensor][moment] for name, tensor in self.lockstep.params.items()
            }
            for moment in ("step", "exp_avg", "exp_avg_sq")
            if self.optimizer.state
        }
        record = {"frozen_at": self.frozen_at, "last_loss": self.last_loss}
        curves = {name: torch.stack(values) for name, values in self.curves.items() if values}
        groups = {**weights, **moments, "record": record, "curves": curves}
        facts = {
            "step": self.step,
            "way": self.lockstep.way,
            "runs": self.cohort.record(),
            "event_shape": list(self.data.event_shape),
            "images": self.checksum,
            "threads": torch.get_num_threads(),
        }
        checkpoint.save(file, groups, facts)

    def resume(self, file: Path) -> None:
        """Goes back to where a checkpoint was written.

        Raises:
            FileNotFoundError: there is none.
            InputError: it is damaged, of another cohort, or of one that began with other images.
        """
        groups, facts = checkpoint.load(file)
        self.cohort.check(facts.get("runs"), file)
        if facts.get("images") != self.checksum:
            raise InputError(
                f"{file}: expected the images that this cohort began with, but the data set "
                f"'{self.cohort.shared.data}' gives others now; bring the old ones back, or choose another --out"
            )
        try:
            for name, tensor in self.lockstep.params.items():
                tensor.copy_(groups["params"][name])
                if "adam.step" in groups:
                    self.optimizer.state[tensor] = {
                        moment: groups[f"adam.{moment}"][name].to(tensor.device)
                        for moment in ("step", "exp_avg", "exp_avg_sq")
                    }
            for name, tensor in self.lockstep.buffers.items():
                tensor.copy_(groups["buffers"][name])
            self.frozen_at, self.last_loss = groups["record"]["frozen_at"], groups["record"]["last_loss"]
            self.curves = {name: list(groups.get("curves", {}).get(name, [])) for name in self.curves}
            self.step, self.lockstep.way = facts["step"], facts["way"]
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{file}: expected a checkpoint of this cohort, got one of another shape: {error}"
            ) from error

    def _batch(self, step: int) -> Batch:
        grey, device = self.data.grey, self.data.train.device
        share = self.cohort.shared.beta_share(step)  # of γ too, so that their ratio stays
        return Batch(
            images=self.data.train if grey is None else grey,
            rows=self.streams.index(step).to(device),
            values={name: share * value for name, value in self.lockstep.values.items()},
            noise={site: draws.to(device) for site, draws in self.streams.noise(step).items()},
            thresholds=None if grey is None else self.streams.thresholds(step, grey.shape[1:]).to(device),
            keys=self.streams.keys("draws", step) if self.lockstep.way == "run by run" else (),
        )

    def _prepared(self, steps: int, compile: Compile, watcher: Watcher) -> Callable[[Batch], Gradients]:
        """The function behind a step, computed as was asked for or in the next best way that works."""
        ways = self._ways(steps, compile, watcher)
        recorded = self.lockstep.way
        for way, fallback in zip(ways, [*ways[1:], None], strict=True):
            try:
                gradients = self.lockstep.gradients(way, self._batch(self.step))
                break
            except Exception as error:
                if fallback is None:
                    raise
                watcher.note(f"not {way}, so {fallback}: {_first_line(error)}")
        if recorded not in (None, way):
            watcher.note(
                f"until step {self.step} this was trained {recorded}, from there {way}: last digits may differ"
            )
        return gradients

    def _ways(self, steps: int, compile: Compile, watcher: Watcher) -> list[Way]:
        """The ways to try, in this order. A resumed cohort goes on as it began."""
        ways: list[Way] = ["compiled", "lifted", "run by run"]
        if not self.streams.liftable:
            watcher.note("not lifted, so run by run: the guide draws from a distribution that takes no normal noise")
            return ways[2:]
        if self.lockstep.way is not None:
            if compile == "never" and self.lockstep.way == "compiled":
                watcher.note("compiled as it began: a cohort that goes on does not change its way")
            return ways[ways.index(self.lockstep.way) :]
        worth_it = compile == "always" or (compile == "auto" and steps >= WORTH_COMPILING)
        return ways if worth_it else ways[1:]

    def _refresh(self) -> None:
        """Renews encodings that the programs hold, at the steps at which it is due."""
        if any(self.step % bank.interval == 0 for bank in self.lockstep.template.banks):
            self.lockstep.refresh(self.data.train, self.streams.keys("bank", self.step))

    def _probe(self) -> None:
        """Adds a point to the learning curves. Training goes on with the encodings that it had."""
        held = self.lockstep.buffers
        self.lockstep.refresh(self.data.train)
        splits = [
            terms_on(name, images[: self.probe], self.lockstep, self.streams, "probe")
            for name, images in self.data.splits()
        ]
        self.lockstep.buffers = held
        self.curves["step"].append(torch.tensor(self.step))
        for name in ("loss", "distortion", "rate"):
            self.curves[name].append(torch.stack([getattr(terms, name).mean(1) for terms in splits]))

    def _watch_for_divergence(self, losses: list[Tensor]) -> None:
        """Marks the runs whose loss or weights have ceased to be finite; ``losses`` are those of the last steps."""
        history = torch.stack(losses).cpu()
        first = self.step - len(history)
        weights = torch.stack(
            [value.reshape(len(value), -1).isfinite().all(1) for value in self.lockstep.params.values()]
        )
        healthy = weights.all(0).cpu()
        for run in (self.frozen_at < 0).nonzero().flatten().tolist():
            finite = history[:, run].isfinite()
            if not finite.all():
                self.frozen_at[run] = first + int(finite.int().argmin())
            elif not healthy[run]:
                self.frozen_at[run] = self.step
            good = history[: self.frozen_at[run] - first, run] if self.frozen_at[run] >= 0 else history[:, run]
            if len(good):
                self.last_loss[run] = good[-1]

    def _restore_frozen(self, file: Path) -> None:
        """Gives frozen runs the weights of their last good checkpoint back."""
        frozen = (self.frozen_at >= 0).nonzero().flatten()
        if len(frozen):
            groups, _ = checkpoint.load(file)
            for group, state in (("params", self.lockstep.params), ("buffers", self.lockstep.buffers)):
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
