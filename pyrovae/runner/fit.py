"""One pair from data in memory, without a study; and pairs in files."""

from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from pyrovae.build import assemble, check_weights, make_cohort_data, make_source, make_training_data
from pyrovae.data import CohortData, memory
from pyrovae.errors import InputError
from pyrovae.programs.noise import fork_seed
from pyrovae.programs.origin import Origin
from pyrovae.programs.pair import Pair
from pyrovae.runner.setup import check_precision, start
from pyrovae.runner.validation import check_study
from pyrovae.store.checkpoint import restore
from pyrovae.study import DATA_SETTINGS, Cohort, Run, Study, check_trust
from pyrovae.system import tensor_file
from pyrovae.system.device import find_device, float32_by_default
from pyrovae.system.execution import Compile, Execution
from pyrovae.system.matmul import multiplied_by
from pyrovae.system.progress import Expected, StudyProgress
from pyrovae.system.provenance import history
from pyrovae.training.trainer import Callback

#: Settings that divide a data set into training and test images.
_DIVIDING = {*DATA_SETTINGS} - {"data", "train_images", "background", "pixels"}


@float32_by_default()
@fork_seed(0)
def fit(
    x: Any,
    *,
    test: Any = None,
    labels: Any = None,
    factors: Any = None,
    device: str = "auto",
    compile: Compile = "auto",
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Pair:
    """Trains one pair on data, minimising D + βR, and returns it ready for Pyro.

    Args:
        x: images ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, H, W, C]``, or vectors ``[N, D]``: a tensor, an array or a
            torch data set; or the name or the path of a data set. uint8 means pixels from 0 to 255. All are training
            images, unless there is a ``test``, a ``split`` or another setting that divides them.
        test: test images, in the same form, for learning curves.
        labels, factors: the class of each item, ``[N]``, and known factors of variation in [0, 1], ``[N, factors]``, by
            which a split may divide the data; with ``test``, pairs of those of x and those of ``test``.
        device, compile, quiet: as in `run`.
        callbacks: called at every point of the learning curves with `Metrics`: step, loss, D and R.
        settings: of the run and its components, such as ``beta=0.5, prior="vamp", depth=3``; a batch has 128 images, or
            all if there are fewer.

    Returns:
        The pair, on its device and in evaluation mode. ``pair.origin`` has its settings and provenance.

    Raises:
        InputError: the data or a setting is not what was expected, or the training diverged.
        Interrupted: SIGINT or SIGTERM came during training.

    Example:
        >>> x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> pair = fit(x, beta=0.5, latent_size=2, width=8, steps=2, quiet=True)
        >>> pair.encode(x).mean.shape, pair.terms(x).rate.shape, pair.weights["beta"]
        (torch.Size([64, 2]), torch.Size([64]), 0.5)
    """
    execution = Execution(device, compile, quiet=quiet)
    here = find_device(device)
    run = _run(memory.settings_of(x, test, labels, factors) | settings)
    data = make_cohort_data([run]) if _DIVIDING & {*settings, *(["split"] if test is not None else [])} else None
    cohort = Cohort((run,))
    check_precision(cohort, here)
    images = CohortData(make_training_data(run)) if data is None else data
    training, _ = start(Study(name="fit").measure, cohort, images.to(here))
    expected = [Expected("train", "fit", run.steps)]
    with (
        TemporaryDirectory() as folder,
        multiplied_by(execution.matmul),
        StudyProgress(expected, timed=False, quiet=quiet) as progress,
    ):
        file, task = Path(folder) / "state.safetensors", progress.start("fit", run.steps)
        training.run(every=run.steps, file=file, compile=compile, task=task, callbacks=callbacks)
    if len(training.divergence.rows):
        at, loss = int(training.divergence.at[0]), float(training.divergence.last_loss[0])
        raise InputError(
            f"learning_rate: expected one at which training converges, got {run.learning_rate:g}: the loss, {loss:.4g} "
            f"before, was not finite by step {at:,}; lower it"
        )
    training.measure_best()
    pair = training.lockstep.pair(0)
    pair.origin = Origin(training.reached(0), images.images.event_shape, images.size, history(training.environments))
    return pair.eval()


def load(file: str | Path, trust: Collection[str] = ()) -> Pair:
    """Reads a pair that `Pair.save` wrote, in evaluation mode on the CPU.

    Args:
        trust: modules whose code may run, where the pair has components of the user's own.

    Raises:
        InputError: there is no such file, it is damaged or no pair, or it names code that is not trusted.

    Example:
        >>> pair = fit(torch.rand(8, 1, 8, 8), beta=0.5, width=8, steps=2, quiet=True)
        >>> pair.save(tmp_path / "mine.safetensors")
        >>> load(tmp_path / "mine.safetensors").origin == pair.origin
        True
    """
    try:
        groups, facts = tensor_file.load(Path(file))
        saved = _Saved.model_validate(facts)
    except FileNotFoundError:
        raise InputError(f"{file}: expected a file that pair.save wrote, but there is no such file") from None
    except InputError:
        raise InputError(f"{file}: expected a file that pair.save wrote, got one that is damaged or another") from None
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{file}: expected a file that pair.save wrote, got one without a valid '{place}'") from None
    run, shape = Run(**saved.run), torch.Size(saved.event_shape)
    check_trust(run.model_dump(), trust)
    check_weights(run, shape)
    pair = assemble(run, shape)
    restore(pair, groups.get("pair", {}))
    pair.origin = Origin(run, shape, saved.train_images, saved.provenance)
    return pair.eval()


class _Saved(BaseModel):
    """What `Pair.save` writes besides weights."""

    model_config = ConfigDict(frozen=True)
    run: dict[str, Any]
    event_shape: list[int]
    train_images: int
    provenance: dict[str, str]


def _run(settings: dict[str, Any]) -> Run:
    """The one run with these settings, checked; a batch has at most all images unless it is set."""
    study = check_study(Study(name="fit", **settings))
    if lists := [axis for axis, values in study.axes.items() if len(values) > 1]:
        raise InputError(f"{lists[0]}: expected one value, got several; for a grid take pyrovae.Study(x, ...).run()")
    (run,) = study.runs()
    if "batch_size" in settings:
        return run
    source = make_source(run)
    size = source.size if source.published is None else int(source.published.sum())
    return run.model_copy(update={"batch_size": min(run.batch_size, run.train_images or size)})
