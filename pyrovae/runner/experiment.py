"""Runs a study from end to end: cohort by cohort trained, measured and written down, then drawn."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from pyrovae.analysis import figures
from pyrovae.build import attach_theory, make_data, make_pair, make_rows, open_results
from pyrovae.data import class_counts
from pyrovae.errors import InputError
from pyrovae.estimators import Annealing
from pyrovae.runner import cohort as work
from pyrovae.runner import prior_swap, reporting
from pyrovae.runner.validation import bank_size, check_names, check_prior
from pyrovae.store import records
from pyrovae.store.results import CohortResult, Results, study_in
from pyrovae.store.schema import check_size
from pyrovae.study.grid import Cohort, Study, check_trust
from pyrovae.system import atomic, memory
from pyrovae.system.device import find_device
from pyrovae.system.progress import Watch
from pyrovae.system.provenance import process_name
from pyrovae.training.trainer import Compile

#: Most differences of a z and an encoding, in all dimensions, at a step.
BANK_LIMIT = 2**29


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
                label=work.label(study, cohort),
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
    study: Study,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    compile: Compile = "auto",
    scheduler: str | None = None,
    quiet: bool = False,
) -> Results:
    """Runs a study, or goes on with one that was interrupted, and returns its results.

    Args:
        study: what to run.
        out: folder for everything it leaves behind; ``runs/NAME`` by default.
        device: "auto" (CUDA if there is any), "cpu" or "cuda".
        compile: "auto" compiles the training step when enough steps are to come, "always", or "never".
        scheduler: the address or the file of a Dask scheduler, on whose workers the cohorts are run; "local" starts one
            with workers of this machine; None takes this process. A script that asks for "local" needs the usual
            ``if __name__ == "__main__":``, because its workers are processes.
        quiet: print nothing.

    Raises:
        InputError: the study, the folder, the device or the cluster is not what was expected; one line says how.
        Interrupted: SIGINT or SIGTERM came while training; the same call goes on from there.

    Example:
        >>> study = Study.load("quick", steps=2, depth=1, width=8, train_images=64, test_images=64)
        >>> results = run(study.replace(seed=0, beta=[0.1, 1]), out=tmp_path / "mine", quiet=True)
        >>> sorted(results.tree["rate_distortion"].sizes.items())
        [('beta', 2), ('seed', 1), ('split', 2)]
        >>> pair = results.pair(beta=1)
    """
    place = find_device(device if scheduler is None else "cpu")
    folder = Path("runs") / study.name if out is None else Path(out)
    plan(study)
    for cohort in study.cohorts() if scheduler is None else ():
        work.check_precision(cohort, place)
    with atomic.locked(folder):
        sizes = {}
        if scheduler is not None or not (folder / "study.yaml").exists():
            for cohort in study.cohorts():  # all that can be wrong is told before anything is trained or written
                one = cohort.model_copy(update={"runs": cohort.runs[:1]})
                training, _ = work.start(study, one, make_data(cohort.shared).to(place))
                sizes[cohort.index] = work.bytes_of_a_run(training.lockstep.pair(0), one, training.data)
        results = Results.create(folder, study, make_pair)
        attach_theory(results)
        missing = [cohort for cohort in results.cohorts() if not results.has(cohort)]

        def steps(cohort: Cohort) -> int:
            return cohort.shared.steps + work.annealing(study, cohort)

        def run_cohort(cohort: Cohort, watch: Watch) -> None:
            outcome = work.run(study, cohort, work.CohortPaths.of(results, cohort), place, compile, watch)
            results.record(results.tree, cohort, outcome)

        given_up: Sequence[Cohort] = []
        if scheduler is None:
            _each(missing, results, steps, run_cohort, quiet)
        elif missing:
            given_up = _on_cluster(scheduler, missing, results, sizes, steps, device, compile, quiet)
        reporting.draw(results)
        if given_up:
            raise InputError(
                f"{', '.join(work.label(study, cohort) for cohort in given_up)}: given up, because workers died of it, "
                "perhaps for lack of memory; all else is done, and the same command tries it again"
            )
        return results


def _on_cluster(
    scheduler: str,
    cohorts: Sequence[Cohort],
    results: Results,
    sizes: Mapping[int, int],
    steps: Callable[[Cohort], int],
    device: str,
    compile: Compile,
    quiet: bool,
) -> list[Cohort]:
    """Runs cohorts on the workers of a cluster, and returns those that were given up."""
    try:
        from pyrovae.runner.cluster.dispatch import Dispatch, connected
    except ImportError as error:
        raise InputError(
            f"scheduler: expected Dask, got {error}; install it with pip install 'pyrovae[dask]'"
        ) from error

    def size(cohort: Cohort) -> int:
        return sizes[cohort.index]

    with connected(scheduler) as client, Watch(sum(map(steps, cohorts)), quiet=quiet) as watch:
        return Dispatch(client, results, size, steps, device, compile, watch).run(cohorts)


def reevaluate(
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
        prior: a prior to put in the place of each pair's own, fitted to frozen encodings as in `prior_swap.fit_prior`.
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
    place = find_device(device)
    study_in(Path(folder))  # or else the lock would make the folder
    with atomic.locked(Path(folder)):
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
            annealing = work.annealing(study, cohort)
            return annealing if prior is None else 2 * annealing + prior_swap.STEPS * len(cohort.runs)

        def evaluate_cohort(cohort: Cohort, watch: Watch) -> None:
            training, checked = work.start(study, cohort, make_data(cohort.shared).to(place))
            training.resume(results.checkpoint_file(cohort))
            measured = work.measure(study, cohort, training, watch)
            here = training.environment().told() | {"worker": process_name()}
            if own is not None:
                records.save(results.details_file(own, cohort), study, cohort, measured)
                results.record(own, cohort, CohortResult.of(training, measured, checked.told() | here))
            if prior is not None:
                fit = watch.begin(
                    f"{work.label(study, cohort)}, fit of {prior}", prior_swap.STEPS * len(cohort.runs), 0
                )
                training.lockstep = prior_swap.with_prior(prior, cohort, training, fit)
                again = work.measure(study, cohort, training, watch)
                prior_swap.check_same_distortion(measured, again)
                checked = work.checked(training.lockstep.pair(0), cohort, training.data)
                records.save(results.details_file(asked, cohort), study, cohort, again)
                results.record(asked, cohort, CohortResult.of(training, again, checked.told() | here))

        _each(missing, results, steps, evaluate_cohort, quiet)
        figures.save(asked, Path(folder) / "figures" / str(asked.name))
        reporting.draw(results)
        return results, asked


def _each(
    cohorts: Sequence[Cohort],
    results: Results,
    steps: Callable[[Cohort], int],
    do: Callable[[Cohort, Watch], None],
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
                do(cohort, watch)
                continue
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
                reason = work.reason(error)
            # Only here has the work let go of its memory.
            memory.give_back_memory()
            left[:0] = work.halves(results, cohort, reason, steps, watch)


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
