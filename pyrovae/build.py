"""Composition root: names and values → objects. The only file that knows both models and guides.

Every part is made in one way: called with what it stands on, and with those settings of the run that its signature
names. A part of the user's own, named as ``module:Class``, is no exception.
"""

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache, partial
from hashlib import sha256
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyrovae import guides, networks
from pyrovae.data import (
    Dataset,
    Source,
    as_input,
    divide,
    images,
    linear,
    pixels,
    splits,
    tetrominoes,
    torchvision_datasets,
)
from pyrovae.errors import InputError
from pyrovae.estimators import LinearGaussian
from pyrovae.models import VAE, GapVAE, HierarchicalVAE, likelihoods, priors
from pyrovae.networks import Sizes
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.pair import Pair
from pyrovae.store.results import Results
from pyrovae.study.grid import OWN_PART, PARTS, PER_RUN, Run, check_trust
from pyrovae.system.memory import check_memory

Parts = dict[str, Callable[..., Any]]

DATA: Parts = {
    "cifar10": torchvision_datasets.cifar10,
    "emnist": torchvision_datasets.emnist,
    "fashion_mnist": torchvision_datasets.fashion_mnist,
    "kmnist": torchvision_datasets.kmnist,
    "linear": linear.source,
    "mnist": torchvision_datasets.mnist,
    "omniglot": torchvision_datasets.omniglot,
    "svhn": torchvision_datasets.svhn,
    "tetrominoes": tetrominoes.source,
}
SPLITS: Parts = {
    "checkerboard": splits.checkerboard,
    "cropped": splits.cropped,
    "held_out": splits.held_out,
    "published": splits.published,
    "random": splits.random,
}
PIXELS: Parts = {"continuous": pixels.continuous, "dynamic": pixels.dynamic, "static": pixels.static}
MODELS: Parts = {"gap": GapVAE, "hierarchical": HierarchicalVAE, "vae": VAE}
PRIORS: Parts = {
    "aggregate": priors.AggregatePosterior,
    "aggregate_leave_one_out": partial(priors.AggregatePosterior, leave_one_out=True),
    "aggregate_subsampled": priors.AggregatePosterior.subsampled,
    "diagonal": priors.Diagonal,
    "flow": priors.Flow,
    "flow_maf": partial(priors.Flow, kind="MAF"),
    "mixture": priors.Mixture,
    "standard_normal": priors.StandardNormal,
    "vamp": priors.VampPrior,
    "vamp_random": partial(priors.VampPrior, start="random"),
}
LIKELIHOODS: Parts = {
    "bernoulli": likelihoods.Bernoulli,
    "continuous_bernoulli": likelihoods.ContinuousBernoulli,
    "discretised_logistic": likelihoods.DiscretisedLogistic,
    "gaussian": likelihoods.Gaussian,
    "gaussian_per_pixel": likelihoods.GaussianPerPixel,
    "gaussian_shared": likelihoods.GaussianShared,
}
GUIDES: Parts = {
    "flow": guides.Flow,
    "full_rank": guides.FullRank,
    "hierarchical": guides.Hierarchical,
    "mean_field": guides.MeanField,
}
NETWORKS: Parts = {
    "conv_large": partial(networks.conv, channels=64),
    "conv_medium": partial(networks.conv, channels=32),
    "conv_small": partial(networks.conv, channels=16),
    "linear": networks.linear,
    "mlp": networks.mlp,
}
REGISTRIES: Mapping[str, Parts] = {
    "data": DATA,
    "split": SPLITS,
    "pixels": PIXELS,
    "pair": {},
    "model": MODELS,
    "prior": PRIORS,
    "likelihood": LIKELIHOODS,
    "guide": GUIDES,
    "network": NETWORKS,
}


def _check_distribution(run: Run, guide: Any) -> None:
    """Raises InputError if encodings would be kept of another q(z|x) than the guide has."""
    takers = [getattr(run, each) for each in ("prior", "model") if "distribution" in taken_by(each, getattr(run, each))]
    if takers and getattr(type(guide), "posterior", None) is not guides.Guide.posterior:
        raise InputError(
            f"guide: '{takers[0]}' keeps features of x and expects a `distribution` of them, but '{run.guide}' has a "
            "`posterior` of its own"
        )
    if takers and not all(name.startswith("encoder.") for name, _ in guide.named_parameters()):
        raise InputError(
            f"guide: '{takers[0]}' keeps encodings, and expects a guide that learns nothing but its encoder, such as "
            f"mean_field or full_rank, got '{run.guide}'"
        )


def taken_by(setting: str, name: str) -> list[str]:
    """What the part of that name takes: where it is made, and, if it is a program, where it is run."""
    part = part_of(setting, name)
    program = signature(part.forward).parameters if setting == "model" and hasattr(part, "forward") else ()
    return [*signature(part).parameters, *program]


def make_rows(run: Run) -> tuple[Source, Tensor, Tensor]:
    """The data set of a run, and the rows of it that are train and test; no image is made yet."""
    source = make_source(run)
    mask = _made("split", run, source)
    train, test = divide(source, mask, run.train_images, run.test_images, run.images_per_class)
    if run.batch_size > len(train):
        raise InputError(f"batch_size: expected at most the {len(train)} training images, got {run.batch_size}")
    return source, train, test


def make_source(run: Run) -> Source:
    """The data set of a run: one by name, a folder of images, or an .npz file."""
    if not is_path(run.data):
        source = _made("data", run)
        if not isinstance(source, Source):
            raise InputError(f"data: expected '{run.data}' to return a Source, got {type(source).__name__}")
        return source
    path = Path(run.data)
    if not path.exists():
        raise InputError(
            f"{path}: expected a folder of images or an .npz file, got neither; looked for from {Path.cwd()}"
        )
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files if file.exists()]
    return _source_at(
        path.absolute(), tuple((file, told.st_ino, told.st_size, told.st_mtime_ns) for file, told in stats)
    )


def make_data(run: Run) -> Dataset:
    """The images of a run, in memory."""
    source, train, test = make_rows(run)
    factors = None if source.factors is None else (source.factors[train], source.factors[test])
    return _made("pixels", run, Dataset(source.chosen(train), source.chosen(test), factors=factors))


def make_likelihood(run: Run, event_shape: torch.Size) -> Any:
    """The likelihood of a run."""
    likelihood = _made("likelihood", run, event_shape)
    for name in ("event_shape", "features", "support", "initial_features", "floor", "distortion_at"):
        if not hasattr(likelihood, name):
            raise InputError(f"likelihood: expected '{run.likelihood}' to have '{name}', as every likelihood has")
    return likelihood


def make_pair(run: Run, event_shape: torch.Size, mean: Tensor | None = None, images: Tensor | None = None) -> Pair:
    """The pair of a run, with initial weights drawn from the run's own stream.

    Args:
        event_shape: shape of an image.
        mean: mean training image; the output bias of the decoder starts there, because Adam would take
            thousands of steps to bring it there.
        images: training images, ``[N, *event_shape]``, at which a prior may start. A part that holds encodings of them
            is given these by `Pair.refresh`.
    """
    with fork_seed(derive_seed(run.seed, "weights")):
        if run.pair is not None:
            pair = _made("pair", run, event_shape)
            if not isinstance(pair, Pair):
                raise InputError(f"pair: expected '{run.pair}' to return a Pair, got {type(pair).__name__}")
            return pair
        likelihood = make_likelihood(run, event_shape)
        code = part_of("guide", run.guide).features(run.latent_size)  # type: ignore[attr-defined]
        sizes = Sizes(event_shape, run.latent_size, encoder=code, decoder=likelihood.features)
        encoder, decoder = _made("network", run, sizes)
        guide = _made("guide", run, encoder, run.latent_size)
        _check_distribution(run, guide)
        # Bound methods, because a guide inside the model would be one set of weights in two places.
        offered = {"encode": guide.encoder.forward, "distribution": guide.distribution, "posterior": guide.posterior}
        draws = None if images is None else partial(_draw, images)
        prior = _made("prior", run, run.latent_size, event_shape=event_shape, images=draws, **offered)
        pair = Pair(_made("model", run, prior, decoder, likelihood, **offered), guide)
    if mean is not None and hasattr(decoder, "output_bias"):
        with torch.no_grad():
            decoder.output_bias.copy_(likelihood.initial_features(mean))
    return pair


def check_weights(run: Run, event_shape: torch.Size) -> None:
    """Raises OutOfMemoryError if training a run would take more memory than is free.

    Counted are weights, gradients and both moments of Adam. The pair is made without memory for that; code of the
    user's own, of which is not known whether that can be done, is not counted.
    """
    if any(OWN_PART.fullmatch(getattr(run, setting) or "") for setting in PARTS):
        return
    with torch.device("meta"):
        pair = make_pair(run, event_shape)
    weights = sum(parameter.numel() for parameter in pair.parameters())
    check_memory(4 * 4 * weights, f"a run of {weights:,} weights")


def own_sources(run: Run) -> list[str]:
    """The modules of the user's own that a run has parts of, with a checksum of each one's source."""
    names = {match[1] for setting in PARTS if (match := OWN_PART.fullmatch(getattr(run, setting) or ""))}
    files = [(name, getattr(import_module(name), "__file__", None)) for name in sorted(names)]
    return [f"{name} (source {sha256(Path(file).read_bytes()).hexdigest()[:12]})" for name, file in files if file]


def theory(run: Run) -> LinearGaussian | None:
    """Closed forms of what training a run aims at, over the population, where there are any.

    Example:
        >>> theory(Run()) is None
        True
        >>> linear_run = Run(data="linear", network="linear", likelihood="gaussian", latent_size=4, beta=0.1)
        >>> round(theory(linear_run).rate, 2)
        8.07
    """
    parts = (run.data, run.network, run.likelihood, run.prior, run.model, run.pair)
    if parts != ("linear", "linear", "gaussian", "standard_normal", "vae", None):
        return None
    covariance = linear.covariance()
    return LinearGaussian.best(covariance, run.latent_size, run.noise_scale, run.beta)


def attach_theory(results: Results) -> None:
    """Puts the closed forms of a study, where there are any, beside what was measured.

    They are over a fine grid of β and the axes that tell cohorts apart.
    """
    study = results.study
    betas = np.geomspace(min(study.axes["beta"]), max(study.axes["beta"]), 100)
    pieces = []
    for cohort in study.cohorts():
        curve = [theory(cohort.shared.model_copy(update={"beta": float(beta)})) for beta in betas]
        if None in curve:
            return
        names = ("rate", "distortion", "mutual_information", "prior_gap")
        values = {name: ("beta", [getattr(point, name) for point in curve]) for name in names}
        place = {key: [value] for key, value in study.coordinates(cohort.shared).items() if key not in PER_RUN}
        pieces.append(xr.Dataset(values, {"beta": betas}).expand_dims(place))
    results.tree["theory"] = xr.DataTree(xr.combine_by_coords(pieces))  # type: ignore[arg-type]


def open_results(folder: str | Path, trust: Collection[str] = ()) -> Results:
    """Opens the results of a study.

    Args:
        trust: modules whose code may run, where the study names parts of its user's own.

    Example:
        >>> open_results("nowhere")
        Traceback (most recent call last):
        pyrovae.errors.InputError: nowhere: expected the folder of a study, but there is no such folder
    """

    def trusted_pair(run: Run, event_shape: torch.Size) -> Pair:
        check_trust(run.model_dump(), trust)
        check_weights(run, event_shape)
        return make_pair(run, event_shape)

    results = Results.open(folder, trusted_pair)
    attach_theory(results)
    return results


def _made(setting: str, run: Run, *given: Any, **offered: Any) -> Any:
    """The part that a setting names, made of what it stands on, and of what it names of the offers and settings."""
    part = part_of(setting, getattr(run, setting))
    further = list(signature(part).parameters)[len(given) :]
    choice = {name: getattr(run, name) for name in Run.model_fields} | offered
    return part(*given, **{name: choice[name] for name in further if name in choice})


def _draw(images: Tensor, number: int) -> Tensor:
    """Some training images, as a program takes them."""
    if number > len(images):
        raise InputError(f"components: expected at most the {len(images)} training images, got {number}")
    return as_input(images[torch.randperm(len(images))[:number].to(images.device)]).cpu()


def part_of(setting: str, name: str) -> Callable[..., Any]:
    """The part of that name.

    Raises:
        InputError: there is none of that name.
    """
    parts = REGISTRIES[setting]
    if name in parts:
        return parts[name]
    if setting in PARTS and OWN_PART.fullmatch(name):
        return _own_part(setting, name)
    own = [*sorted(parts), *(["module:name of a part of yours"] if setting in PARTS else [])]
    own += ["the path of an .npz file or of a folder of images"] if setting == "data" else []
    raise InputError(f"unknown {setting} '{name}'; valid: {', '.join(own)}")


def _own_part(setting: str, name: str) -> Callable[..., Any]:
    """A part of the user's own, imported."""
    module, _, attribute = name.partition(":")
    try:
        part = getattr(import_module(module), attribute)
    except Exception as error:  # whatever the user's code raises
        raise InputError(
            f"{setting}: expected '{name}' to be importable, got {type(error).__name__}: {error}"
        ) from error
    if not callable(part):
        raise InputError(f"{setting}: expected '{name}' to be a class or a function, got {type(part).__name__}")
    return part


def is_path(data: str) -> bool:
    return data not in DATA and (data.endswith(".npz") or "/" in data or Path(data).is_dir())


@lru_cache(maxsize=2)
def _source_at(path: Path, told: tuple[object, ...]) -> Source:
    """What is at a path; what the file system tells of its files tells whether it is to be read again."""
    return images.from_npz(path) if path.suffix == ".npz" else images.from_folder(path)
