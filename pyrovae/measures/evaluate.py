"""What is measured on the trained runs of a cohort."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_map

from pyrovae.data import Dataset, as_input
from pyrovae.errors import UnsupportedError
from pyrovae.measures.codes import CHUNK, codes
from pyrovae.measures.difficulty import difficulty
from pyrovae.measures.information import information
from pyrovae.measures.likelihood import likelihood
from pyrovae.measures.measure import MeasureResult, over_splits
from pyrovae.measures.memorisation import memorisation, smoothed_mean
from pyrovae.measures.pictures import latent_plane, samples, traversals
from pyrovae.programs.pair import Pair, Terms
from pyrovae.study.grid import Measure
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.streams import Streams


class DistortionReference(Protocol):
    """What a likelihood knows of distortion."""

    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion of each image, ``[n, *event_shape] → [n]``; NaN for none."""

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        """Distortion of images under a likelihood with these means, ``[n]``; NaN where the means do not decide it."""


class Evaluation(NamedTuple):
    """What evaluation gives.

    Attributes:
        groups: numbers by group of the results and variable, ``[runs]``, ``[runs, split]`` or, in the group "images",
            ``[runs, split, images]``, NaN where a split has fewer images; splits are train and test.
        notes: of each run, what was not measured, and why; empty where everything was.
        levels: what each latent site adds to the rate, E[log q − log p], and its standard error, ``[runs, split]`` by
            site and variable. Only the sum need be a KL divergence.
        difficulty: how hard the generalization problem is, ``[split]``, the same for all runs.
        pictures: by group and variable, ``[runs, ...]``: images decoded from the prior ("samples") and along latents
            ("traversals"), reconstructions, and the latent plane where z has two dimensions ("plane").
    """

    groups: dict[str, dict[str, NDArray[np.float64]]]
    notes: list[str]
    levels: dict[str, dict[str, NDArray[np.float64]]]
    difficulty: dict[str, NDArray[np.float64]]
    pictures: dict[str, dict[str, NDArray[Any]]]


def evaluate(
    lockstep: Lockstep,
    streams: Streams,
    data: Dataset,
    pixels: DistortionReference,
    measure: Measure,
    stepped: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Measures each run on the images that ``measure`` names, in nats per image; the weights are only read.

    D = E_x E_q(z|x)[−log p(x|z)] and R = E_x KL(q(z|x) ‖ p(z)) on both splits, and what `measures` has. The standard
    errors are over images.

    Args:
        pixels: the likelihood.
        stepped: told of every step of annealing.
    """
    chosen = [(name, images[: measure.images]) for name, images in data.splits()]
    terms = [terms_on(name, images, lockstep, streams, f"evaluate {name}", measure.samples) for name, images in chosen]
    floors = [torch.cat([pixels.floor(as_input(chunk)) for chunk in images.split(CHUNK)]) for _, images in chosen]
    mean, found, notes, levels = smoothed_mean(data), [], [], []
    for run, seed in enumerate(streams.seeds):
        pair, values = lockstep.pair(run), lockstep.values_of(run)
        # Validation would stop at the codes of a run that has diverged, and lose its neighbours' numbers too.
        with torch.no_grad(), pyro.validation_enabled(False):
            measures, note = _of_run(pair, data, mean, pixels, measure, seed, stepped, values)
        found.append({"rate_distortion": _rate_distortion(run, floors, terms, data)} | measures)
        notes.append(note)
        levels.append(
            {site: over_splits("rate", *(each.rates[site][run] for each in terms)) for site in terms[0].rates}
        )
    groups = {group: _stacked([each[group].cells for each in found]) for group in found[0] if found[0][group].cells}
    per_image = [{name: value for each in one.values() for name, value in each.images.items()} for one in found]
    groups["images"] = _stacked([_padded(each, measure.per_image) for each in per_image])
    pictures = {
        group: _stacked([each[group].pictures for each in found]) for group in found[0] if found[0][group].pictures
    }
    of_site = {site: _stacked([each[site] for each in levels]) for site in levels[0]}
    return Evaluation(groups, notes, of_site, difficulty(data, measure), pictures)


def _of_run(
    pair: Pair,
    data: Dataset,
    mean: Tensor,
    pixels: DistortionReference,
    measure: Measure,
    seed: int,
    stepped: Callable[[], None],
    values: Mapping[str, Tensor],
) -> tuple[dict[str, MeasureResult], str]:
    """What the measures find of a run, by group, and what is to be said of it: what was not measured, and why."""
    log_n = {"log_n": np.log(len(data.train))}
    found = {
        "likelihood": likelihood(pair, data, measure, seed, stepped, **values),
        "samples": MeasureResult({}, pictures=samples(pair, data.event_shape, seed)),
        "information": MeasureResult(log_n),
    }
    try:
        of_run = codes(pair, data, **values)
        measured = information(of_run, measure, seed)
    except UnsupportedError as error:
        return found, f"I, G and memorisation are not measured: {error}"
    found["information"] = MeasureResult({**measured.cells, **log_n})
    found["plane"] = MeasureResult({}, pictures=latent_plane(of_run.train, of_run.prior, seed))
    try:
        memorised = memorisation(pair, of_run, data, mean, measure, seed, pixels.distortion_at, **values)
    except UnsupportedError as error:
        return found, f"memorisation is not measured: {error}"
    found["memorisation"] = memorised._replace(pictures={})
    found["reconstructions"] = MeasureResult({}, pictures=memorised.pictures)
    along = traversals(pair, of_run.train, of_run.test, as_input(data.test[:1]), seed, **values)
    found["traversals"] = MeasureResult({}, pictures=along)
    finite = np.isfinite(measured.cells["mutual_information"])
    return found, "" if finite else "I and G are not finite, because the codes are not"


def _rate_distortion(run: int, floors: list[Tensor], terms: list[Terms], data: Dataset) -> MeasureResult:
    """Distortion, rate and their sum on both splits."""
    distortion, rate = ([getattr(each, name)[run] for each in terms] for name in ("distortion", "rate"))
    elbo = [-d - r for d, r in zip(distortion, rate, strict=True)]
    sides = {"distortion": distortion, "rate": rate, "elbo": elbo}
    cells: dict[str, NDArray[np.float64]] = {"floor": np.array([each.double().mean().item() for each in floors])}
    for name, (train, test) in sides.items():
        cells |= over_splits(name, train, test)
    cells["bits_per_dim"] = -cells["elbo"] / (data.event_shape.numel() * np.log(2))
    return MeasureResult(cells, {name: (train, test) for name, (train, test) in sides.items() if name != "elbo"})


def terms_on(split: str, images: Tensor, lockstep: Lockstep, streams: Streams, purpose: str, samples: int = 1) -> Terms:
    """Loss, distortion and rate of each image under each run, ``[runs, images]``, in nats, in float64.

    Args:
        split: "train" or "test".
        images: the first images of the split, ``[images, *event_shape]``.
        purpose: names the noise: the same purpose gets the same draws.
        samples: draws of z an image, over which the mean is taken.
    """
    chunks = []
    for number, chunk in enumerate(images.split(CHUNK)):
        x = as_input(chunk)
        first = number * CHUNK
        index = torch.arange(first, first + len(x), device=x.device) if split == "train" else None
        draws = []
        for sample in range(samples):
            block = number * samples + sample
            noise = {site: eps.to(x.device) for site, eps in streams.noise_for(purpose, len(x), block).items()}
            terms = lockstep.terms(x, noise, streams.keys(purpose, block), index)
            draws.append(tree_map(lambda term: term.double().cpu(), terms))
        chunks.append(tree_map(lambda *parts: torch.stack(parts).mean(0), *draws))
    return tree_map(lambda *parts: torch.cat(parts, dim=1), *chunks)


def _stacked(runs: list[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """One array a variable, ``[runs, ...]``, of those that every run has."""
    names = [name for name in runs[0] if all(name in each for each in runs)]
    return {name: np.stack([each[name] for each in runs]) for name in names}


def _padded(images: Mapping[str, tuple[Tensor, Tensor]], length: int) -> dict[str, NDArray[np.float64]]:
    """Numbers of the images of both splits in one array, ``[split, images]``, NaN where a split has fewer."""
    return {
        name: torch.stack(
            [pad(each.double().cpu(), (0, length - len(each)), value=torch.nan) for each in sides]
        ).numpy()
        for name, sides in images.items()
    }
