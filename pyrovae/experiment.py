"""Runs a study from end to end: cohort by cohort trained, measured and written down, then drawn."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor

from pyrovae import files, machine, reporting, swap
from pyrovae.analysis import figures
from pyrovae.build import (
    attach_theory,
    check_weights,
    make_data,
    make_likelihood,
    make_pair,
    make_rows,
    open_results,
    own_sources,
)
from pyrovae.checks import bank_size, check_names, check_prior
from pyrovae.data import Dataset, as_input, class_counts
from pyrovae.errors import InputError, OutOfMemoryError, UnsupportedError
from pyrovae.estimators import Annealing
from pyrovae.evaluate import Measured, Pixels, evaluate
from pyrovae.lockstep import Lockstep
from pyrovae.measures.likelihood import PASSES
from pyrovae.pair import Checked, Pair
from pyrovae.progress import Watch
from pyrovae.results import Results, study_in
from pyrovae.streams import Streams, seeded
from pyrovae.study import PER_RUN, Cohort, Run, Study, check_trust
from pyrovae.train import Compile, Training, history
from pyrovae.tree import check_size

#: Most differences of a z and an encoding, in all dimensions, at a step.
BANK_LIMIT = 2**29
#: Share of the free memory that a cohort may take.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class PlannedCohort:
    """One line of the plan."""

    label: str
    runs: int
    steps: int
    train_images: int
    test_images: int
    #: Images of each class on either side; None where classes are not known.
    train_classes: dict[int, int] | None
    test_classes: dict[int, int] | None
    #: Encodings that a training image is held to at a step, renewed every so many steps; None where no part holds any.
    bank: int | None
    refresh: int
    #: Densities of a z and an encoding that a step takes, and that measuring R and log p(x) takes, over all runs.
    densities: tuple[int, int]


def plan(study: Study) -> list[PlannedCohort]:
    """What running a study would do, without an image made or a weight trained.

    Raises:
        InputError: the study names a part that does not exist, or asks for what the data do not have.
    """
    check_size(study)
    cohorts = study.cohorts()
    check_names(study.runs())
    planned = []
    for cohort in cohorts:
        source, train, test = make_rows(cohort.shared)
        bank = bank_size(cohort.shared, len(train))
        _check_bank(cohort, bank or 0)
        seen = min(study.measure.images, len(train)) + min(study.measure.images, len(test))
        annealed = 2 * study.measure.temperatures * study.measure.chains * Annealing().leapfrog
        bounded = (study.measure.particles + annealed) * min(study.measure.likelihood_images, len(test))
        planned.append(
            PlannedCohort(
                label=_label(study, cohort),
                runs=len(cohort.runs),
                steps=cohort.shared.steps,
                train_images=len(train),
                test_images=len(test),
                train_classes=class_counts(source, train),
                test_classes=class_counts(source, test),
                bank=bank,
                refresh=cohort.shared.refresh,
                densities=(
                    len(cohort.runs) * cohort.shared.batch_size * (bank or 0),
                    len(cohort.runs) * (study.measure.samples * seen + bounded) * len(train),
                ),
            )
        )
    return planned


def run(
    study: Study, out: str | Path | None = None, *, device: str = "auto", compile: Compile = "auto", quiet: bool = False
) -> Results:
    """Runs a study, or goes on with one that was interrupted, and returns its results.

    Args:
        study: what to run.
        out: folder for everything it leaves behind; ``runs/NAME`` by default.
        device: "auto" (CUDA if there is any), "cpu" or "cuda".
        compile: "auto" compiles the training step when enough steps are to come, "always", or "never".
        quiet: print nothing.

    Raises:
        InputError: the study, the folder or the device is not what was expected; one line says how.
        Interrupted: SIGINT or SIGTERM came while training; the same call goes on from there.

    Example:
        >>> study = Study.load("quick", steps=2, depth=1, width=8, train_images=64, test_images=64)
        >>> results = run(study.replace(seed=0, beta=[0.1, 1]), out=tmp_path / "mine", quiet=True)
        >>> sorted(results.tree["rate_distortion"].sizes.items())
        [('beta', 2), ('seed', 1), ('split', 2)]
        >>> pair = results.pair(beta=1)
    """
    place = machine.device(device)
    folder = Path("runs") / study.name if out is None else Path(out)
    plan(study)
    with files.locked(folder):
        if not (folder / "study.yaml").exists():
            for cohort in study.cohorts():  # all that can be wrong is told before anything is trained or written
                one = cohort.model_copy(update={"runs": cohort.runs[:1]})
                _start(study, one, make_data(cohort.shared).to(place))
        results = Results.create(folder, study, make_pair)
        attach_theory(results)
        missing = [cohort for cohort in results.cohorts() if not results.has(cohort)]

        def steps(cohort: Cohort) -> int:
            return cohort.shared.steps + _annealing(study, cohort)

        def run_cohort(cohort: Cohort, watch: Watch) -> None:
            _run_cohort(results, cohort, place, compile, watch)

        _each(missing, results, steps, run_cohort, quiet)
        reporting.draw(results)
    return results


def evaluate_again(
    folder: str | Path,
    *,
    prior: str | None = None,
    device: str = "auto",
    trust: Collection[str] = (),
    quiet: bool = True,
    **measure: int,
) -> tuple[Results, xr.DataTree]:
    """Measures the runs of a finished study again, without training; with another prior if asked.

    Each cohort is written down as it is done. Asked for the same once more, as after an interruption, it measures what
    is missing, and nothing else.

    Args:
        folder: the folder of the study.
        prior: a prior to put in the place of each pair's own, fitted to the frozen encodings as in `swap.fit_prior`.
        device: as in `run`.
        trust: modules whose code may run, where the study names parts of its user's own.
        quiet: print nothing.
        measure: settings of `Measure` that are to differ from the study's own, such as ``images=8192``, or
            ``temperatures=200`` for bounds of log p(x) by annealing.

    Returns:
        The results, and the part of their tree that is new: ``/evaluation_1`` or the next free number, with the groups
        that are measured as in the results themselves; its figures are in ``figures/evaluation_1``. Where a prior is
        swapped and settings of ``measure`` differ too, a group before it holds the pairs' own prior, measured with
        these.

    Raises:
        InputError: the study is not finished, a setting is not what was expected, or code is not trusted.

    Example:
        >>> study = Study.load("quick", steps=2, depth=1, width=8, train_images=64, test_images=64, seed=0)
        >>> results = run(study, out=tmp_path / "mine", quiet=True)
        >>> results, again = evaluate_again(tmp_path / "mine", samples=4)
        >>> again.name, dict(again["information"].sizes)
        ('evaluation_1', {'beta': 3, 'seed': 1})
    """
    place = machine.device(device)
    study_in(Path(folder))  # or else the lock would make the folder
    with files.locked(Path(folder)):
        results = open_results(folder, trust)
        check_trust(results.study.settings(), trust)
        study = results.study.replace(**{f"measure.{key}": value for key, value in measure.items()})
        _check_effort(study, measure)
        missing = [cohort for cohort in results.cohorts() if not results.has(cohort)]
        if missing:
            raise InputError(
                f"{folder}: expected a finished study, but {len(missing)} of its {len(results.cohorts())} cohorts are "
                "not; 'pyrovae run' goes on with it"
            )
        if prior is not None:
            check_trust({"prior": prior}, trust)
            for run in study.runs():
                check_prior(run.model_copy(update={"prior": prior}))
        # With settings that are not the study's, the pairs' own prior is measured too, before the one swapped in.
        own = results.evaluation(study) if prior is None or measure else None
        asked = results.evaluation(study, prior)
        missing = [
            cohort
            for cohort in results.cohorts()
            if not all(results.is_measured(each, cohort) for each in (own, asked) if each is not None)
        ]

        def steps(cohort: Cohort) -> int:
            annealing = _annealing(study, cohort)
            return annealing if prior is None else 2 * annealing + swap.STEPS * len(cohort.runs)

        def evaluate_cohort(cohort: Cohort, watch: Watch) -> None:
            training, checked = _start(study, cohort, make_data(cohort.shared).to(place))
            training.resume(results.checkpoint_file(cohort))
            measured = _measure(study, cohort, training, watch)
            here = training.circumstances().told()
            if own is not None:
                results.record(own, cohort, measured, training, checked.told() | here)
            if prior is not None:
                watch.begin(f"{_label(study, cohort)}, fit of {prior}", swap.STEPS * len(cohort.runs), 0)
                training.lockstep = swap.with_prior(prior, cohort, training, watch)
                watch.end()
                again = _measure(study, cohort, training, watch)
                swap.check_same_distortion(measured, again)
                checked = _checked(training.lockstep.pair(0), cohort, training.data)
                results.record(asked, cohort, again, training, checked.told() | here)

        _each(missing, results, steps, evaluate_cohort, quiet)
        figures.save(asked, Path(folder) / "figures" / str(asked.name))
        reporting.draw(results)
        return results, asked


def _each(
    cohorts: Sequence[Cohort],
    results: Results,
    steps: Callable[[Cohort], int],
    work: Callable[[Cohort, Watch], None],
    quiet: bool,
) -> None:
    """Does some work, which takes so many steps, on cohorts. One that does not fit into memory is cut in halves.

    Raises:
        OutOfMemoryError: a single run does not fit.
    """
    left, total = list(cohorts), sum(map(steps, cohorts))
    with Watch(total, quiet=quiet or not total) as watch:
        while left:
            cohort = left.pop(0)
            try:
                work(cohort, watch)
                continue
            except Exception as error:
                if not machine.is_out_of_memory(error):
                    raise
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
            # Only here has the work let go of its memory.
            machine.give_back_memory()
            label = _label(results.study, cohort)
            if len(cohort.runs) == 1:
                raise OutOfMemoryError(f"{label}: expected one run to fit into memory, but {reason}")
            halves = results.cut(cohort)
            left[:0] = halves
            watch.more(sum(map(steps, halves)) - steps(cohort))
            watch.note(f"{label}: goes on in two halves, because {reason}")


def _check_effort(study: Study, measure: Mapping[str, int]) -> None:
    """Raises InputError if more images are asked for than there are, or what belongs to training is."""
    for key in measure.keys() & {"probe", "points"}:
        raise InputError(
            f"{key}: expected a setting of what is measured after training, got one of the learning curves"
        )
    most = max(max(cohort.train_images, cohort.test_images) for cohort in plan(study))
    for key in ("images", "outer", "likelihood_images"):
        if measure.get(key, 0) > most:
            raise InputError(f"{key}: expected at most the {most:,} images of a split, got {measure[key]:,}")


def _measure(study: Study, cohort: Cohort, training: Training, watch: Watch) -> Measured:
    data, lockstep, steps = training.data, training.lockstep, count(1)
    lockstep.refresh(data.train)  # a run that diverged came back with the encodings of its last checkpoint
    pixels = _pixels(cohort.shared, data)
    if not study.measure.temperatures:
        return evaluate(lockstep, training.streams, data, pixels, study.measure)
    watch.begin(f"{_label(study, cohort)}, annealing", _annealing(study, cohort), 0)
    measured = evaluate(lockstep, training.streams, data, pixels, study.measure, lambda: watch.stepped(next(steps)))
    watch.end()
    return measured


def _annealing(study: Study, cohort: Cohort) -> int:
    """Steps of annealing that it takes to measure a cohort."""
    return PASSES * study.measure.temperatures * len(cohort.runs)


class _Unknown:
    """A likelihood inside a pair of the user's own, of which nothing is known."""

    def floor(self, x: Tensor) -> Tensor:
        return x.new_full((len(x),), torch.nan)

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        return self.floor(x)


def _pixels(run: Run, data: Dataset) -> Pixels:
    return make_likelihood(run, data.event_shape) if run.pair is None else _Unknown()


def _run_cohort(results: Results, cohort: Cohort, device: torch.device, compile: Compile, watch: Watch) -> None:
    study, shared = results.study, cohort.shared
    data = make_data(shared).to(device)
    training, checked = _start(study, cohort, data)
    file = results.checkpoint_file(cohort)
    if file.exists():
        training.resume(file)
        watch.note(f"{_label(study, cohort)}: goes on from step {training.step:,}")
    watch.begin(_label(study, cohort), shared.steps, training.step)
    before = time.perf_counter()
    training.run(every=study.checkpoint_every, file=file, compile=compile, watcher=watch)
    seconds = time.perf_counter() - before
    watch.end()
    measured = _measure(study, cohort, training, watch)
    provenance = checked.told() | history(training.made) | {"seconds": seconds}
    results.record(results.tree, cohort, measured, training, provenance)
    for note in sorted(set(measured.notes) - {""}):
        watch.note(f"{_label(study, cohort)}: {note}")


def _start(study: Study, cohort: Cohort, data: Dataset) -> tuple[Training, Checked]:
    """A cohort before its first step."""
    shared, device = cohort.shared, data.train.device
    _check_support(shared, data)
    check_weights(shared, data.event_shape)
    mean = data.mean().cpu()
    of_seed = {run.seed: make_pair(run, data.event_shape, mean, data.train).to(device) for run in cohort.runs}
    for pair in of_seed.values():
        pair.refresh(data.train)
    checked = _checked(of_seed[shared.seed], cohort, data)
    needed = len(cohort.runs) * _bytes_of_a_run(of_seed[shared.seed], _first_batch(cohort, data))
    machine.check_memory(needed, f"{len(cohort.runs)} runs in lockstep", device, share=MEMORY_SHARE)
    if study.measure.temperatures:
        _check_annealing(of_seed[shared.seed], as_input(data.train[: shared.batch_size]))
    weights = [run.weights() for run in cohort.runs]
    values = {name: torch.tensor([each[name] for each in weights], device=device) for name in weights[0]}
    lockstep = Lockstep([of_seed[run.seed] for run in cohort.runs], values)
    seeds = [run.seed for run in cohort.runs]
    streams = Streams(seeds, len(data.train), shared.batch_size, checked.noise_shapes)
    versions = ", ".join([machine.versions(), *own_sources(shared)])
    return Training(lockstep, streams, data, cohort, study.measure, versions), checked


def _checked(pair: Pair, cohort: Cohort, data: Dataset) -> Checked:
    """What the first batch tells about a pair."""
    batch = _first_batch(cohort, data)
    return pair.check(batch, beta=0.5, gamma=0.25, index=torch.arange(len(batch), device=batch.device))


def _first_batch(cohort: Cohort, data: Dataset) -> Tensor:
    return as_input(data.train[: cohort.shared.batch_size])


def _bytes_of_a_run(pair: Pair, x: Tensor) -> int:
    """Memory that training takes for each run.

    Weights, gradients and both moments; the rehearsal of a step or the checkpoint, of three of these; what a pair holds
    beside weights, twice in the rehearsal; and a batch on its way there and back, where about twice as much is made as
    the way there keeps for the way back.
    """
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), seeded(0):
        pair(x, index=torch.arange(len(x), device=x.device))
    weights, held = (sum(each.nbytes for each in tensors) for tensors in (pair.parameters(), pair.buffers()))
    return (4 + 3) * weights + 2 * held + 3 * kept


def _check_bank(cohort: Cohort, bank: int) -> None:
    """Raises InputError if training would hold more differences of a z and an encoding in memory than is reasonable."""
    shared = cohort.shared
    numbers = len(cohort.runs) * shared.batch_size * bank * shared.latent_size
    if numbers > BANK_LIMIT:
        raise InputError(
            f"prior: at each step, {len(cohort.runs)} runs of {shared.batch_size} images would be held to all {bank:,} "
            f"encodings, which takes {numbers * 4 / 2**30:.0f} GB and more; expected at most "
            f"{BANK_LIMIT * 4 / 2**30:.0f} GB: take aggregate_subsampled, fewer components or train_images, or "
            "fewer runs"
        )


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


def _label(study: Study, cohort: Cohort) -> str:
    """What sets a cohort apart from the others of its study."""
    place = {key: value for key, value in study.coordinates(cohort.shared).items() if key not in PER_RUN}
    name = ", ".join(f"{key} {value}" for key, value in place.items()) or study.name
    return f"{name}, part {cohort.name}" if cohort.cut else name
