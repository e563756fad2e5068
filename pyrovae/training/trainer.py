"""Training of one cohort: the loop, the learning curves, and how it resumes from a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from pyrovae.data import CohortData
from pyrovae.errors import InputError
from pyrovae.store.checkpoint import BEST, BRANCH, Checkpoint, CheckpointHeader, Groups, checkpoint_mismatch
from pyrovae.study import EVERY_SPLIT, Cohort, Measure, Run, key_of
from pyrovae.study.probes import probe_steps
from pyrovae.system.device import device_name, to_device
from pyrovae.system.execution import Compile, ExecutionMode
from pyrovae.system.matmul import library_in_use
from pyrovae.system.memory import freed_memory_kept, is_out_of_memory
from pyrovae.system.progress import ProgressReporter, ProgressTask
from pyrovae.system.provenance import Environment
from pyrovae.system.signals import stop_requests
from pyrovae.training.adam import FLUSH_INTERVAL, Adam, step_sizes
from pyrovae.training.divergence import Divergence, restore_rows
from pyrovae.training.lockstep import Batch, Lockstep
from pyrovae.training.modes import candidate_modes
from pyrovae.training.precision import emulates_bfloat16
from pyrovae.training.streams import Streams
from pyrovae.training.target_rate import TOLERANCE
from pyrovae.training.terms import terms_on

#: Quantities of the learning curves, over splits.
CURVES = ("loss", "distortion", "rate")
#: β in force, which learning curves show, too.
WEIGHT = "weight"


class Metrics(NamedTuple):
    """A point of the learning curves: loss, D and R of each run on some images of each split, in nats per image.

    Attributes:
        step: steps done.
        runs: settings of the runs.
        splits: "train", "test" and "validation", as far as there are images.
        loss, distortion, rate: ``[runs, splits]`` each.
    """

    step: int
    runs: tuple[Run, ...]
    splits: tuple[str, ...]
    loss: Tensor
    distortion: Tensor
    rate: Tensor

    def rows(self) -> list[dict[str, Any]]:
        """One row of plain values for each run, as in ``metrics.jsonl``; None where a value is not finite."""
        rows: list[dict[str, Any]] = []
        for number, run in enumerate(self.runs):
            row: dict[str, Any] = {"step": self.step, "key": key_of(run), "beta": run.beta, "seed": run.seed}
            for name in CURVES:
                for split, value in zip(self.splits, getattr(self, name)[number].tolist(), strict=True):
                    row[f"{name}/{split}"] = value if isfinite(value) else None
            rows.append(row)
        return rows


#: Called at every point of the learning curves.
Callback = Callable[[Metrics], object]


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
        curves: one tensor per point, by name: ``step``; ``loss``, ``distortion`` and ``rate``, ``[runs, split]`` each;
            and ``weight``, β in force, ``[runs]``.
        branch: the state at the first step of the tail, once it is reached.
        best: where they are kept, the weights with the lowest validation loss so far, their loss and their step.
        cohorts: for each run, the key of the cohort in which it was trained last.
        cached: after the last step, the cached encodings that a longer training would use; those of the programs are
            newer then.
    """

    def __init__(
        self, lockstep: Lockstep, streams: Streams, data: CohortData, cohort: Cohort, measure: Measure, versions: str
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
        self.curves: dict[str, list[Tensor]] = {name: [] for name in ("step", *CURVES, WEIGHT)}
        self.branch: Groups = {}
        self.best: Groups = self._nothing_better() if cohort.shared.keep == "best" else {}
        self.cohorts = [cohort.key] * len(lockstep)
        self.cached: dict[str, Tensor] = {}
        rates = [run.learning_rate for run in cohort.runs]
        self._learning_rates = rates if len(set(rates)) > 1 else rates[:1]  # with one, Adam's kernels are faster

    @cached_property
    def data_checksums(self) -> list[int]:
        """Checksums of the images of the runs, which a resumed training must share."""
        numbers = [run.training_set for run in self.cohort.runs]
        found = {number: self.data.of(numbers.index(number)).checksum() for number in set(numbers)}
        return [found[number] for number in numbers]

    def run(
        self, *, every: int, file: Path, compile: Compile, task: ProgressTask, callbacks: Sequence[Callback] = ()
    ) -> None:
        """Trains to the end, and saves a checkpoint every ``every`` steps, at the branch and at the end.

        Args:
            callbacks: called at every point of the learning curves.

        Raises:
            Interrupted: SIGINT or SIGTERM came, or the progress reporter requested a stop; the steps done are saved.
        """
        steps, probes, progress = self.cohort.shared.steps, self._probe_steps(), task.reporter
        # In one tensor: thousands of small ones would keep the memory between them from being used again.
        losses, unchecked = torch.empty(min(every, steps), len(self.cohort.runs), device=self.data.device), 0
        # Also while the step is compiled: an interrupt raised inside the compiler may get lost there.
        with stop_requests() as stop, freed_memory_kept():
            if self.step < steps:
                self.save(file)
                step = self.stepper(compile, progress)
            self._note_environment(progress)
            while self.step < steps:
                losses[unchecked] = step()
                unchecked += 1
                task.update(self.step)
                if self.step in probes:
                    self._probe()
                    if self.best:
                        self._keep_best()
                    for callback in callbacks:
                        callback(self._metrics())
                    task.numbers = self._numbers()
                if self.step == steps and self.lockstep.template.banks:
                    self.cached = {name: buffer.clone() for name, buffer in self.lockstep.buffers.items()}
                    self.lockstep.refresh(self.data)
                stopped = stop.is_set() or progress.stop_requested()
                if stopped or self.step % every == 0 or self.step in (self.cohort.shared.branch_step, steps):
                    self._check_divergence(losses[:unchecked])
                    unchecked = 0
                    self.save(file)
                if stopped:
                    raise Interrupted
        self._note_missed_targets(progress)
        if len(self.divergence.rows) and file.exists():
            restore_rows(self._weights(), self.divergence.rows, Checkpoint.load(file).groups)

    def stepper(self, compile: Compile, progress: ProgressReporter) -> Callable[[], Tensor]:
        """Chooses the execution mode, and returns a function that trains all runs for one step.

        The function returns the losses of the runs, ``[runs]``.
        """
        update = self._batch_stepper(compile, progress)
        intervals = {bank.interval for bank in self.lockstep.template.banks}

        def step() -> Tensor:
            if any(self.step % interval == 0 for interval in intervals):
                self.lockstep.refresh(self.data, self.streams.keys("bank", self.step))
            if self.step % FLUSH_INTERVAL == 0:
                self.adam.flush_()
            losses = update(self._batch(self.step))
            self.step += 1
            return losses

        return step

    def save(self, file: Path) -> None:
        """Writes the checkpoint. A diverged run keeps its last good weights, those in the file."""
        state, diverged = self._state(), self.divergence.rows
        if len(diverged) and file.exists():
            state |= tree_map(lambda tensor: tensor.cpu().clone(), self._weights())
            restore_rows({name: state[name] for name in self._weights()}, diverged, Checkpoint.load(file).groups)
        if self.step == self.cohort.shared.branch_step:
            self.branch = tree_map(lambda tensor: tensor.cpu().clone(), state)
        self._checkpoint(state).save(file)

    def checkpoint(self) -> Checkpoint:
        """The state of the runs."""
        return self._checkpoint(self._state())

    def measure_best(self) -> None:
        """Replaces the last weights by the best ones, where these are kept; training cannot continue from there."""
        if self.best:
            found = self.best["best"]["step"].nonzero().flatten()
            restore_rows(self._weights(), found, {name.removeprefix(BEST): each for name, each in self.best.items()})

    def measured_step(self, number: int) -> int:
        """The step of the weights of a run that are measured."""
        return int(self.best["best"]["step"][number]) if self.best else self.step

    def reached(self, number: int) -> Run:
        """The settings of a run, with β where training has moved it."""
        run, multiplier = self.cohort.runs[number], self.lockstep.multiplier
        return run if multiplier is None else run.model_copy(update={"beta": float(multiplier.beta[number])})

    def curves_of(self, run: int) -> dict[str, NDArray[Any]]:
        """The learning curves of one run, ``[points, split]`` or ``[points]`` each, and their steps."""
        if not self.curves["step"]:
            return {}
        stacked = {name: torch.stack(points) for name, points in self.curves.items()}
        return {name: (each if name == "step" else each[:, run]).numpy() for name, each in stacked.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restores the state of the runs, to continue from there.

        Raises:
            InputError: it is that of other runs, or of training with other images.
        """
        header, groups = checkpoint.header, checkpoint.groups
        self.check_images(header.data)

        def saved(group: str, name: str, like: Tensor) -> Tensor:
            tensor = groups.get(group, {}).get(name)
            if tensor is None or (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
                raise checkpoint_mismatch(f"{group}/{name}")
            return tensor.to(like.device)

        for group, state in (self._weights() | self._moments()).items():
            for name, tensor in state.items():
                tensor.copy_(saved(group, name, tensor))
                if group == "params" and not tensor.isfinite().all():
                    raise checkpoint_mismatch(f"params/{name}")
        continues = header.step < self.cohort.shared.steps
        self.cohorts = [self.cohort.key] * len(self.lockstep) if continues else list(header.cohorts)
        self.cached = {} if continues else groups.get("cached", {})
        if continues and "cached" in groups:
            for name, buffer in self.lockstep.buffers.items():
                buffer.copy_(saved("cached", name, buffer))
        self.best = {
            group: {name: saved(group, name, tensor).clone() for name, tensor in state.items()}
            for group, state in self.best.items()
        }
        self.divergence.at = saved("record", "diverged_at", self.divergence.at)
        self.divergence.last_loss = saved("record", "last_loss", self.divergence.last_loss)
        self.curves = self._earlier_points(groups.get("curves", {}), header.step)
        self.branch = {name.removeprefix(BRANCH): each for name, each in groups.items() if name.startswith(BRANCH)}
        self.step, self.environments = header.step, list(header.environments)
        self.lockstep.mode = self.environments[-1].mode if self.environments else None

    def check_images(self, checksums: Sequence[int]) -> None:
        """Refuses images other than those that the runs began with.

        Args:
            checksums: of these.

        Raises:
            InputError: the images have changed.
        """
        if list(checksums) != self.data_checksums:
            raise InputError(
                f"data: expected the images that these runs began with, but '{self.cohort.shared.data}' has different "
                "ones now; restore the old ones, or choose another --out"
            )

    def environment(self) -> Environment:
        """What steps done now would depend on."""
        mode = self.lockstep.mode
        assert mode is not None, "chosen before the first step"
        return Environment(
            since=self.step,
            mode=mode,
            device=device_name(self.data.device),
            threads=torch.get_num_threads(),
            matmul=library_in_use(),
            versions=self.versions,
        )

    def _note_environment(self, progress: ProgressReporter) -> None:
        """Records the environment of the next steps, and prints how it differs from that of the previous ones."""
        now = self.environment()
        if not self.environments:
            self.environments.append(now)
        before, after = self.environments[-1].as_provenance(), now.as_provenance()
        if changed := [f"{name} {before[name]} → {after[name]}" for name in before if before[name] != after[name]]:
            progress.note(f"from step {self.step:,} on with other {'; '.join(changed)}: last digits may differ")
            self.environments.append(now)

    def _note_missed_targets(self, progress: ProgressReporter) -> None:
        """Prints one line if runs have missed their target rate."""
        if self.lockstep.multiplier is None:
            return
        target, beta = self.lockstep.multiplier.target.cpu(), self.lockstep.multiplier.beta.cpu()
        rate = self.curves["rate"][-1][:, 0]
        missed = (rate - target).abs() > TOLERANCE * target
        if missed.any():
            worst = (rate / target).log().abs().where(missed, 0).argmax()
            progress.note(
                f"target_rate: {int(missed.sum())} of {len(missed)} runs have missed theirs, such as R* = "
                f"{target[worst]:g}, where R is {rate[worst]:.4g} nats at β = {beta[worst]:.3g}; take more steps, a "
                "'beta' to start from that is closer, or another target"
            )

    def _weights(self) -> Groups:
        """Parameters, buffers that are not the same constants in all pairs, and β where it moves."""
        saved = self.lockstep.template.state_dict()
        buffers = {name: tensor for name, tensor in self.lockstep.buffers.items() if name in saved}
        multiplier = {"multiplier": self.lockstep.multiplier.state()} if self.lockstep.multiplier else {}
        return {"params": dict(self.lockstep.params), "buffers": buffers, **multiplier}

    def _nothing_better(self) -> Groups:
        """The best weights before the first point of the learning curves."""
        runs = len(self.lockstep)
        weights = tree_map(torch.clone, {BEST + group: state for group, state in self._weights().items()})
        return weights | {"best": {"loss": torch.full((runs,), torch.inf), "step": torch.zeros(runs, dtype=torch.long)}}

    def _keep_best(self) -> None:
        """Keeps the weights of the runs whose validation loss is the lowest so far."""
        loss, best = self.curves["loss"][-1][:, EVERY_SPLIT.index("validation")], self.best["best"]
        better = (loss < best["loss"]).nonzero().flatten()
        best["loss"][better], best["step"][better] = loss[better].to(best["loss"].dtype), self.step
        restore_rows({name: self.best[BEST + name] for name in self._weights()}, better, self._weights())

    def _moments(self) -> Groups:
        return {"adam.exp_avg": self.adam.exp_avg, "adam.exp_avg_sq": self.adam.exp_avg_sq}

    def _state(self) -> Groups:
        divergence = {"diverged_at": self.divergence.at, "last_loss": self.divergence.last_loss}
        cached = {"cached": self.cached} if self.cached else {}
        return {**self._weights(), **self._moments(), **cached, **self.best, "record": divergence}

    def _checkpoint(self, state: Groups) -> Checkpoint:
        curves = {
            name: torch.stack(points) if name == "step" else torch.stack(points, 1)
            for name, points in self.curves.items()
            if points
        }
        header = CheckpointHeader(
            keys=list(self.cohort.keys),
            runs=[run.model_dump(mode="json") for run in self.cohort.runs],
            cohorts=self.cohorts,
            step=self.step,
            event_shape=list(self.data.images.event_shape),
            data=self.data_checksums,
            environments=self.environments,
            train_images=self.data.size,
            branch_step=self.cohort.shared.branch_step if self.branch else None,
        )
        return Checkpoint(
            header, state | {"curves": curves} | {BRANCH + name: each for name, each in self.branch.items()}
        )

    def _earlier_points(self, curves: Mapping[str, Tensor], step: int) -> dict[str, list[Tensor]]:
        """The points of earlier learning curves up to a step at which these have a point, too."""
        steps = curves.get("step", torch.tensor([]))
        shape = (len(self.lockstep), len(steps))
        shapes = {WEIGHT: shape, **dict.fromkeys(CURVES, (*shape, len(self.data.images.splits())))}
        if any(name not in curves or curves[name].shape != each for name, each in shapes.items() if len(steps)):
            raise checkpoint_mismatch("curves")
        probes = self._probe_steps()
        kept = [at for at, point in enumerate(steps.tolist()) if point <= step and point in probes]
        return {"step": list(steps[kept]), **{name: [curves[name][:, at] for at in kept] for name in shapes}}

    def _batch(self, step: int) -> Batch:
        images, shared, own_rows = self.data.images, self.cohort.shared, self.streams.index(step)
        share = shared.learning_rate_share(step)
        sizes = step_sizes([rate * share for rate in self._learning_rates], step + 1)
        return Batch(
            images=images.train if images.grey is None else images.grey,
            rows=self.data.gathered(own_rows),
            own_rows=own_rows,
            values=self._weights_of_loss(step),
            noise=self.streams.noise(step),
            step_sizes=to_device(sizes, self.data.device),
            thresholds=None if images.grey is None else self.streams.thresholds(step, images.event_shape),
            keys=self.streams.keys("draws", step) if self.lockstep.mode == "sequential" else (),
        )

    def _weights_of_loss(self, step: int) -> dict[str, Tensor]:
        """β and γ in force at a step, ``[runs]``: both have the schedule, so that their ratio is constant."""
        share = to_device(torch.tensor([run.beta_share(step) for run in self.cohort.runs]), self.data.device)
        return {name: share * value for name, value in self.lockstep.values.items()}

    def _batch_stepper(self, compile: Compile, progress: ProgressReporter) -> Callable[[Batch], Tensor]:
        """The step in the first execution mode that works."""
        modes, remaining = self._modes(compile, progress), self.cohort.shared.steps - self.step
        for mode, fallback in zip(modes, [*modes[1:], None], strict=True):
            try:
                step = self.lockstep.stepper(mode, self.adam, self._batch(self.step), remaining)
                break
            except Exception as error:
                if fallback is None or is_out_of_memory(error):
                    raise
                progress.note(f"execution mode {mode} failed, using {fallback}: {_first_line(error)}")
        return step

    def _modes(self, compile: Compile, progress: ProgressReporter) -> Sequence[ExecutionMode]:
        """The execution modes to try, in order."""
        if self.cohort.shared.precision == "bfloat16" and emulates_bfloat16(self.data.device):
            progress.note(
                "precision: this CPU has no instructions for bfloat16, so it trains more slowly than in float32"
            )
        if not self.streams.vmappable:
            progress.note(
                "cannot vmap: the guide is not reparameterized from normal noise; training the runs one by one"
            )
            return ["sequential"]
        modes = candidate_modes(self.data.device, self.cohort.shared.steps, compile, self.lockstep.mode)
        if compile == "never" and modes[0] in ("cuda_graph", "compiled"):
            progress.note(f"{modes[0]}, although compile is 'never': a resumed cohort keeps its execution mode")
        return modes

    def _probe_steps(self) -> list[int]:
        return probe_steps(self.cohort.shared.steps, self.measure.points)

    def _probe(self) -> None:
        """Adds a point to the learning curves, without changing the encodings that training has cached."""
        cached = {name: buffer.clone() for name, buffer in self.lockstep.buffers.items()}
        self.lockstep.refresh(self.data)
        splits = [
            terms_on(name, self.data, self.measure.probe, self.lockstep, self.streams, "probe")
            for name, _ in self.data.images.splits()
        ]
        for name, buffer in self.lockstep.buffers.items():
            buffer.copy_(cached[name])
        self.curves["step"].append(torch.tensor(self.step))
        for name in CURVES:
            self.curves[name].append(torch.stack([getattr(terms, name).mean(1) for terms in splits], 1))
        self.curves[WEIGHT].append(self._weights_of_loss(self.step - 1)["beta"].cpu())

    def _metrics(self) -> Metrics:
        """The last point of the learning curves."""
        splits = tuple(name for name, _ in self.data.images.splits())
        return Metrics(self.step, self.cohort.runs, splits, *(self.curves[name][-1] for name in CURVES))

    def _numbers(self) -> str:
        """The latest point of the learning curves, as the range over the runs."""
        loss, distortion, rate = (self.curves[name][-1] for name in CURVES)

        def over(values: Tensor) -> str:
            return "–".join(dict.fromkeys(f"{each:.1f}" for each in values.aminmax()))

        splits = [
            f"{name} D {over(distortion[:, number])} R {over(rate[:, number])}"
            for number, (name, _) in enumerate(self.data.images.splits())
        ]
        return ", ".join([f"loss {over(loss[:, 0])}", *splits])

    def _check_divergence(self, losses: Tensor) -> None:
        states = [*self.lockstep.params.values(), *self.adam.exp_avg_sq.values()]
        self.divergence.update(losses, states, self.step)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
