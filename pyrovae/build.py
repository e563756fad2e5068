"""Settings → objects: the only file that knows models and guides.

Every component is made in one way: called with what it builds on, with those values of the run that its signature
names, and with its own settings. A component of the user's own, ``module:name``, is no exception.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae import parts
from pyrovae.data import CohortData, Dataset, Source, as_input, divide, for_validation, images, linear, memory, splits
from pyrovae.errors import InputError
from pyrovae.estimators import LinearGaussian
from pyrovae.guides import Guide
from pyrovae.networks import Preceded, Sizes
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.origin import Origin
from pyrovae.programs.pair import Pair
from pyrovae.study import KINDS, Run, check_settings, component_settings, parameters_of
from pyrovae.system.device import float32_by_default
from pyrovae.system.memory import check_memory


def make_rows(run: Run) -> tuple[Source, Tensor, Tensor, Tensor]:
    """The data set of a run, and its rows that are train, test and validation; no image is made yet."""
    source = make_source(run)
    mask = instantiate("split", run, source)
    interchangeable = parts.resolve("split", run.component("split").name) in splits.INTERCHANGEABLE
    drawable = torch.ones(source.size, dtype=torch.bool) if interchangeable else mask
    limits = run.train_images, run.test_images, run.images_per_class
    validation = for_validation(source, mask, run.validation_images)
    train, test = divide(source, mask, *limits, run.training_set, drawable, validation)
    if run.batch_size > len(train):
        raise InputError(
            f"batch_size: expected at most the {len(train)} training images, got {run.batch_size}; set a smaller one"
        )
    return source, train, test, validation


def make_source(run: Run) -> Source:
    """The data set of a run: one by name, one in memory, a folder of images, or a file."""
    if run.data.startswith(parts.MEMORY):
        return memory.find(run.data)
    if not parts.is_path(run.data):
        source = instantiate("data", run)
        if not isinstance(source, Source):
            raise InputError(f"data: expected '{run.data}' to return a Source, got {type(source).__name__}")
        return source
    path = Path(run.data)
    if not path.exists():
        raise InputError(
            f"{path}: expected a folder of images or a file such as .npz or .csv, got neither; looked for from "
            f"{Path.cwd()}"
        )
    files = images.image_files(path) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files]
    version = tuple((file, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in stats)
    return _source_at(path.absolute(), version, **component_settings(run, "data"))


def class_names(run: Run) -> str:
    """The folder of each class, such as ``0 cats, 1 dogs``, if the data set of a run is a folder with several."""
    classes = make_source(run).classes if parts.is_path(run.data) else None
    return ", ".join(f"{label} {name}" for label, name in enumerate(classes or ()))


def make_data(run: Run, most_train: int | None = None, most_test: int | None = None) -> Dataset:
    """The images of a run, in memory; at most so many of each split, if that is given."""
    source, train, test, validation = make_rows(run)
    return _images(run, source, train[:most_train], test[:most_test], validation[:most_test])


def make_training_data(run: Run) -> Dataset:
    """All images of the data set of a run, or the first ``train_images``, as training images without test images."""
    source = make_source(run)
    rows = torch.randperm(source.size, generator=torch.Generator().manual_seed(1))
    train, test = rows[: run.train_images], rows[:0]
    if run.batch_size > len(train):
        raise InputError(
            f"batch_size: expected at most the {len(train)} training images, got {run.batch_size}; set a smaller one"
        )
    return _images(run, source, train, test, rows[:0])


def make_cohort_data(runs: Sequence[Run]) -> CohortData:
    """The images of runs that differ in the seed of their training images, if at all, each in memory once."""
    sets: dict[int, Tensor] = {}
    for run in runs:
        if run.training_set not in sets:
            source, sets[run.training_set], *others = make_rows(run)
    if len(sets) == 1:
        return CohortData(_images(runs[0], source, sets[runs[0].training_set], *others))
    train = torch.cat(list(sets.values())).unique()
    places = {number: torch.searchsorted(train, rows) for number, rows in sets.items()}
    return CohortData(_images(runs[0], source, train, *others), torch.stack([places[run.training_set] for run in runs]))


def make_likelihood(run: Run, event_shape: torch.Size) -> Any:
    """The likelihood of a run."""
    try:
        likelihood = instantiate("likelihood", run, event_shape)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"likelihood: '{run.likelihood}': {error}") from error
    for name in ("event_shape", "features", "support", "initial_features", "floor", "distortion_at"):
        if not hasattr(likelihood, name):
            raise InputError(f"likelihood: expected '{run.likelihood}' to have '{name}', as every likelihood has")
    return likelihood


def make_pair(run: Run, event_shape: torch.Size, mean: Tensor | None = None, images: Tensor | None = None) -> Pair:
    """The pair of a run, with initial weights drawn from the run's own stream.

    Args:
        event_shape: shape of an image.
        mean: mean training image, at which the output bias of the decoder starts; Adam would need thousands of steps
            to bring it there.
        images: training images, ``[N, *event_shape]``, at which a prior may start. A component that holds encodings of
            them gets these by `Pair.refresh`.

    Raises:
        InputError: a setting is unknown, ambiguous or out of range, or components do not fit each other.

    Example:
        >>> make_pair(Run(prior="mixture", components=3, width=8), torch.Size([1, 8, 8])).model.prior.loc.shape
        torch.Size([3, 10])
    """
    check_settings([run])
    return assemble(run, event_shape, mean, images)


def assemble(run: Run, event_shape: torch.Size, mean: Tensor | None = None, images: Tensor | None = None) -> Pair:
    """As `make_pair`, for a run of a grid, whose settings need not all be taken by its components."""
    with fork_seed(derive_seed(run.seed, "weights")):
        pair = _programs(run, torch.Size(event_shape), mean, images)
    pair.origin = Origin(run, torch.Size(event_shape))
    return pair


def _programs(run: Run, event_shape: torch.Size, mean: Tensor | None, images: Tensor | None) -> Pair:
    """The pair of a run, with weights drawn from torch's generator."""
    if run.pair is not None:
        pair = instantiate("pair", run, event_shape)
        if not isinstance(pair, Pair):
            raise InputError(f"pair: expected '{run.pair}' to return a Pair, got {type(pair).__name__}")
        return pair
    likelihood = make_likelihood(run, event_shape)
    guide_class: Any = parts.resolve("guide", run.component("guide").name)
    sizes = Sizes(event_shape, run.latent_size, guide_class.features(run.latent_size), likelihood.features)
    encoder, decoder = instantiate("network", run, sizes)
    if (seen := getattr(likelihood, "encoder_input", None)) is not None:
        encoder = Preceded(seen, encoder)
    guide = instantiate("guide", run, encoder, run.latent_size)
    _check_encodings(run, guide)
    # Bound methods, because a guide inside the model would be one set of weights in two places.
    injected = {"encode": guide.encoder.forward, "distribution": guide.distribution, "posterior": guide.posterior}
    draw = None if images is None else partial(_draw, images)
    prior = instantiate("prior", run, run.latent_size, event_shape=event_shape, images=draw, **injected)
    pair = Pair(instantiate("model", run, prior, decoder, likelihood, **injected), guide)
    if mean is not None and hasattr(decoder, "output_bias"):
        features = likelihood.initial_features(mean)
        if features.shape != decoder.output_bias.shape or not features.isfinite().all():
            raise InputError(
                f"network: expected an output_bias that could start at the mean of the data, {list(features.shape)} "
                f"finite features of '{run.likelihood}', got {list(decoder.output_bias.shape)}"
            )
        with torch.no_grad():
            decoder.output_bias.copy_(features)
    return pair


@float32_by_default()
def instantiate(kind: str, run: Run, *positional: Any, **injected: Any) -> Any:
    """The component of a kind that a run names.

    Args:
        positional: what it builds on.
        injected: what it may name in its signature, besides the run's values and its own settings.

    Raises:
        InputError: its signature asks for something else.
    """
    name = run.component(kind).name
    component = parts.resolve(kind, name)
    values = {each: getattr(run, each) for each in Run.model_fields if each not in KINDS} | injected
    parameters = list(signature(component).parameters.values())[len(positional) :]
    accepted = {each.name: values[each.name] for each in parameters if each.name in values}
    accepted |= component_settings(run, kind)
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    for each in parameters:
        if each.default is each.empty and each.kind not in variadic and each.name not in accepted:
            raise InputError(
                f"{kind}: '{name}' asks for '{each.name}', which is neither a setting, because it has no default, nor "
                f"one of {', '.join(sorted(values))}"
            )
    return component(*positional, **accepted)


def check_weights(run: Run, event_shape: torch.Size) -> None:
    """Raises OutOfMemoryError if training a run would take more memory than is free.

    Weights, gradients and both moments of Adam count. The pair is made on the meta device, without memory for them;
    components of the user's own, which may not work there, are not counted.
    """
    if any(parts.user_module(run.component(kind).name) for kind in run.kinds):
        return
    with torch.device("meta"):
        pair = assemble(run, event_shape)
    weights = sum(parameter.numel() for parameter in pair.parameters())
    check_memory(4 * 4 * weights, f"a run of {weights:,} weights")


def user_sources(run: Run) -> list[str]:
    """The modules of the user's own that a run has components from, with a checksum of the source of each."""
    return parts.user_sources(run.component(kind).name for kind in KINDS if getattr(run, kind) is not None)


def theory(run: Run) -> LinearGaussian | None:
    """Closed forms of the optimum that training a run approaches, over the population, where there are any.

    Example:
        >>> theory(Run()) is None
        True
        >>> linear_run = Run(data="linear", network="linear", likelihood="gaussian", latent_size=4, beta=0.1)
        >>> round(theory(linear_run).rate, 2)
        8.07
    """
    names = tuple(run.component(kind).name for kind in ("data", "network", "likelihood", "prior", "model"))
    if run.pair is not None or names != ("linear", "linear", "gaussian", "standard_normal", "vae"):
        return None
    noise_scale = component_settings(run, "likelihood")["noise_scale"]
    if run.target_rate is not None:
        return LinearGaussian.at_rate(linear.covariance(), run.latent_size, noise_scale, run.target_rate)
    return LinearGaussian.best(linear.covariance(), run.latent_size, noise_scale, run.beta)


def _check_encodings(run: Run, guide: Guide) -> None:
    """Raises InputError if encodings would be kept of another q(z|x) than the guide has."""
    keepers = [getattr(run, kind) for kind in ("prior", "model") if "distribution" in parameters_of(run, kind)]
    if keepers and getattr(type(guide), "posterior", None) is not Guide.posterior:
        raise InputError(
            f"guide: '{keepers[0]}' keeps features of x and expects a `distribution` of them, but '{run.guide}' "
            "overrides `posterior`"
        )
    if keepers and not all(name.startswith("encoder.") for name, _ in guide.named_parameters()):
        raise InputError(
            f"guide: '{keepers[0]}' keeps encodings, and expects a guide that learns nothing but its encoder, such as "
            f"mean_field or full_rank, got '{run.guide}'"
        )


def _draw(images: Tensor, number: int) -> Tensor:
    """Some training images, as a program takes them."""
    if number > len(images):
        raise InputError(f"components: expected at most the {len(images)} training images, got {number}")
    return as_input(images[torch.randperm(len(images))[:number].to(images.device)]).cpu()


def _images(run: Run, source: Source, train: Tensor, test: Tensor, validation: Tensor) -> Dataset:
    factors, labels = (
        None if column is None else (column[train], column[test]) for column in (source.factors, source.labels)
    )
    images = Dataset(source.load(train), source.load(test), factors=factors, rows=(train, test), labels=labels)
    images = instantiate("pixels", run, images)
    if not len(validation):
        return images
    apart = Dataset(source.load(validation), images.test[:0], rows=(validation, test[:0]))
    return replace(images, validation=instantiate("pixels", run, apart).train)


@lru_cache(maxsize=2)
def _source_at(path: Path, version: tuple[object, ...], **settings: Any) -> Source:
    """The data set at a path; ``version`` changes when its files do."""
    return parts.resolve("data", parts.reader(str(path)))(path, **settings)
