"""Training of one cohort: the loop, the learning curves, and how it resumes from a checkpoint."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pyrovae.data import Dataset
from pyrovae.errors import InputError
from pyrovae.store.checkpoint import CheckpointHeader, Groups, checkpoint_mismatch, load_checkpoint
from pyrovae.study import Cohort, Measure
from pyrovae.study.probes import probe_steps
from pyrovae.system import tensor_file
from pyrovae.system.device import device_name, to_device
from pyrovae.system.execution import Compile, ExecutionMode
from pyrovae.system.memory import freed_memory_kept, is_out_of_memory
from pyrovae.system.progress import ProgressReporter, ProgressTask
from pyrovae.system.provenance import Environment
from pyrovae.system.signals import stop_requests
from pyrovae.training.adam import Adam, step_sizes
from pyrovae.training.divergence import Divergence, restore_rows
from pyrovae.training.lockstep import Batch, Lockstep
from pyrovae.training.modes import candidate_modes
from pyrovae.training.streams import Streams
from pyrovae.training.terms import terms_on

#: Quantities of the learning curves.
CURVES = ("loss", "distortion", "rate")


class Interrupted(KeyboardInterrupt):
    """Training was stopped, after a checkpoint was saved."""


class Training:
    """The state of the training of a cohort.

    Args:
        lockstep: the runs.
        streams: their random streams.
        data: images on the device of the runs.
        cohort: the settings of the runs.
        measure: number of points of the learning curves, and of images behind them.
        versions: versions of all code that the numbers depend on.

    Attributes:
        step: steps done.
        environments: the environments of these steps, in order.
        divergence: which runs have diverged.
        curves: one tensor per point, by name: ``step``, and ``loss``, ``distortion`` and ``rate``, ``[split, runs]``
            each.
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
        self.environments: list[Environment] = []
        self.divergence = Divergence(len(lockstep))
        self.curves: dict[str, list[Tensor]] = {name: [] for name in ("step", *CURVES)}

    @cached_property
    def data_checksum(self) -> int:
        """Checksum of the images, which a resumed training must share."""
        return self.data.checksum()

    def run(self, *, every: int, file: Path, compile: Compile, task: ProgressTask) -> None:
        """Trains to the end, and saves a checkpoint every ``every`` steps and at the end.

        Raises:
            Interrupted: SIGINT or SIGTERM came, or the progress reporter requested a stop; the steps done are saved.
        """
        steps, probes, progress = self.cohort.shared.steps, self._probe_steps(), task.reporter
        losses: list[Tensor] = []
        # Also while the step is compiled: an interrupt raised inside the compiler may get lost there.
        with stop_requests() as stop, freed_memory_kept():
            if self.step == 0:
                self.save(file)
            if self.step < steps:
                step = self.stepper(compile, progress)
            self._note_environment(progress)
            while self.step < steps:
                losses.append(step())
                task.update(self.step)
                if self.step in probes:
                    self._probe()
                if self.step == steps:
                    self.lockstep.refresh(self.data.train)
                stopped = stop.is_set() or progress.stop_requested()
                if stopped or self.step % every == 0 or self.step == steps:
                    self._check_divergence(losses)
                    losses.clear()
                    self.save(file)
                if stopped:
                    raise Interrupted
        restore_rows(self._weights(), self.divergence.rows, file)

    def stepper(self, compile: Compile, progress: ProgressReporter) -> Callable[[], Tensor]:
        """Chooses the execution mode, and returns a function that trains all runs for one step.

        The function returns the losses of the runs, ``[runs]``.
        """
        update = self._batch_stepper(compile, progress)

        def step() -> Tensor:
            self._refresh_banks()
            losses = update(self._batch(self.step))
            self.step += 1
            return losses

        return step

    def save(self, file: Path) -> None:
        """Writes the checkpoint. A diverged run keeps its last good weights."""
        weights, diverged = self._weights(), self.divergence.rows
        if len(diverged):
            weights = tree_map(lambda tensor: tensor.cpu().clone(), weights)
            restore_rows(weights, diverged, file)
        record = {"diverged_at": self.divergence.at, "last_loss": self.divergence.last_loss}
        curves = {name: torch.stack(values) for name, values in self.curves.items() if values}
        header = CheckpointHeader(
            step=self.step,
            runs=self.cohort.record(),
            event_shape=list(self.data.event_shape),
            data_checksum=self.data_checksum,
            environments=self.environments,
        )
        tensor_file.save(file, {**weights, **self._moments(), "record": record, "curves": curves}, header.model_dump())

    def resume(self, file: Path) -> None:
        """Restores the state that a checkpoint holds.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is damaged, or belongs to another cohort or to other images.
        """
        groups, header = load_checkpoint(file, self.cohort)
        if header.data_checksum != self.data_checksum:
            raise InputError(
                f"{file}: expected the images that this cohort began with, but the data set "
                f"'{self.cohort.shared.data}' has different ones now; restore the old ones, or choose another --out"
            )

        def saved(group: str, name: str, like: Tensor) -> Tensor:
            tensor = groups.get(group, {}).get(name)
            if tensor is None or (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
                raise checkpoint_mismatch(file, f"{group}/{name}")
            return tensor.to(like.device)

        for group, state in (self._weights() | self._moments()).items():
            for name, tensor in state.items():
                tensor.copy_(saved(group, name, tensor))
                if group == "params" and not tensor.isfinite().all():
                    raise checkpoint_mismatch(file, f"params/{name}")
        self.divergence.at = saved("record", "diverged_at", self.divergence.at)
        self.divergence.last_loss = saved("record", "last_loss", self.divergence.last_loss)
        if steps := [step for step in self._probe_steps() if step <= header.step]:
            cells = torch.empty(len(steps), len(self.data.splits()), len(self.lockstep), dtype=torch.float64)
            points = {name: list(saved("curves", name, cells)) for name in CURVES}
            self.curves = {"step": list(torch.tensor(steps)), **points}
        self.step, self.environments = header.step, header.environments
        self.lockstep.mode = self.environments[-1].mode if self.environments else None

    def environment(self) -> Environment:
        """What steps done now would depend on."""
        mode = self.lockstep.mode
        assert mode is not None, "chosen before the first step"
        device, threads = device_name(self.data.train.device), torch.get_num_threads()
        return Environment(since=self.step, mode=mode, device=device, threads=threads, versions=self.versions)

    def _note_environment(self, progress: ProgressReporter) -> None:
        """Records the environment of the next steps, and prints how it differs from that of the previous ones."""
        now = self.environment()
        if not self.environments:
            self.environments.append(now)
        before, after = self.environments[-1].as_provenance(), now.as_provenance()
        if changed := [f"{name} {before[name]} → {after[name]}" for name in before if before[name] != after[name]]:
            progress.note(f"from step {self.step:,} on with other {'; '.join(changed)}: last digits may differ")
            self.environments.append(now)

    def _weights(self) -> Groups:
        """Parameters and buffers, without buffers that are the same constants in all pairs."""
        saved = self.lockstep.template.state_dict()
        buffers = {name: tensor for name, tensor in self.lockstep.buffers.items() if name in saved}
        return {"params": dict(self.lockstep.params), "buffers": buffers}

    def _moments(self) -> Groups:
        return {"adam.exp_avg": self.adam.exp_avg, "adam.exp_avg_sq": self.adam.exp_avg_sq}

    def _batch(self, step: int) -> Batch:
        grey = self.data.grey
        share = self.cohort.shared.beta_share(step)  # also of γ, so that their ratio is constant
        return Batch(
            images=self.data.train if grey is None else grey,
            rows=self.streams.index(step),
            values={name: share * value for name, value in self.lockstep.values.items()},
            noise=self.streams.noise(step),
            step_sizes=to_device(step_sizes(self.cohort.shared.learning_rate, step + 1), self.data.train.device),
            thresholds=None if grey is None else self.streams.thresholds(step, grey.shape[1:]),
            keys=self.streams.keys("draws", step) if self.lockstep.mode == "sequential" else (),
        )

    def _batch_stepper(self, compile: Compile, progress: ProgressReporter) -> Callable[[Batch], Tensor]:
        """The step in the first execution mode that works."""
        modes = self._modes(compile, progress)
        for mode, fallback in zip(modes, [*modes[1:], None], strict=True):
            try:
                step = self.lockstep.stepper(mode, self.adam, self._batch(self.step))
                break
            except Exception as error:
                if fallback is None or is_out_of_memory(error):
                    raise
                progress.note(f"execution mode {mode} failed, using {fallback}: {_first_line(error)}")
        return step

    def _modes(self, compile: Compile, progress: ProgressReporter) -> Sequence[ExecutionMode]:
        """The execution modes to try, in order."""
        if not self.streams.vmappable:
            progress.note(
                "cannot vmap: the guide is not reparameterized from normal noise; training the runs one by one"
            )
            return ["sequential"]
        modes = candidate_modes(self.data.train.device, self.cohort.shared.steps, compile, self.lockstep.mode)
        if compile == "never" and modes[0] in ("cuda_graph", "compiled"):
            progress.note(f"{modes[0]}, although compile is 'never': a resumed cohort keeps its execution mode")
        return modes

    def _refresh_banks(self) -> None:
        """Refreshes the cached encodings of the programs, at the steps at which that is due."""
        if any(self.step % bank.interval == 0 for bank in self.lockstep.template.banks):
            self.lockstep.refresh(self.data.train, self.streams.keys("bank", self.step))

    def _probe_steps(self) -> list[int]:
        return probe_steps(self.cohort.shared.steps, self.measure.points)

    def _probe(self) -> None:
        """Adds a point to the learning curves, without changing the encodings that training has cached."""
        cached = {name: buffer.clone() for name, buffer in self.lockstep.buffers.items()}
        self.lockstep.refresh(self.data.train)
        splits = [
            terms_on(name, images[: self.measure.probe], self.lockstep, self.streams, "probe")
            for name, images in self.data.splits()
        ]
        for name, buffer in self.lockstep.buffers.items():
            buffer.copy_(cached[name])
        self.curves["step"].append(torch.tensor(self.step))
        for name in CURVES:
            self.curves[name].append(torch.stack([getattr(terms, name).mean(1) for terms in splits]))

    def _check_divergence(self, losses: list[Tensor]) -> None:
        states = [*self.lockstep.params.values(), *self.adam.exp_avg_sq.values()]
        self.divergence.update(torch.stack(losses), states, self.step)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
