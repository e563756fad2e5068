"""Is the guide any good? q(z|x) of some images beside the exact posterior, and what it costs to be off."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from torch import Tensor

from pyrovae.analysis.diagnosis.exact_posterior import exact_posterior
from pyrovae.analysis.inference_data import inference_data
from pyrovae.errors import UnsupportedError
from pyrovae.estimators import Annealing, InferenceGap, Optimisation, importance_diagnostics, inference_gap
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.pair import Pair

#: Largest R̂ and fewest effective draws with which the chains of an image are taken for its posterior.
RHAT, ESS = 1.05, 100
#: Standard errors by which an approximation gap has to be below zero before it is said to be wrong.
SHORT = 4
#: What of the inference gap is told of each image.
GAP = ("log_likelihood", "elbo", "approximation", "amortisation", "approximation_se", "amortisation_se")


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """A guide beside the exact posterior.

    Attributes:
        guide: draws of q(z|x), as `inference_data` gives them.
        exact: draws of p(z|x), as `exact_posterior` gives them.
        summary: by image and latent the difference of the means in standard deviations of the posterior (shift), the
            ratio of the standard deviations (scale), R̂ and the effective number of draws of the chains (rhat, ess); by
            image their divergences (diverging), the k̂ of the guide's weights (pareto_k), and log p(x), the ELBO, both
            parts of the gap between them and their standard errors, in nats, as in `InferenceGap`.
        notes: what could not be measured, or is not to be trusted.
    """

    guide: xr.DataTree
    exact: xr.DataTree
    summary: xr.Dataset
    notes: tuple[str, ...]


def diagnose(
    pair: Pair,
    x: Tensor,
    *,
    chains: int = 4,
    draws: int = 200,
    warmup: int = 200,
    annealing: Annealing = Annealing(chains=32),
    optimisation: Optimisation = Optimisation(),
    images: Sequence[Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    seed: int = 0,
    stepped: Callable[[], None] = lambda: None,
    **values: Any,
) -> Diagnosis:
    """Holds q(z|x) of some images to the exact posterior, draw by draw and in nats.

    Args:
        pair, x, images, attrs, seed, values: as in `inference_data`.
        chains, draws, warmup: as in `exact_posterior`; the guide is drawn from as often as all chains together.
        annealing, optimisation: as in `inference_gap`.
        stepped: called after every step of `exact_posterior` and of `inference_gap`.

    Raises:
        UnsupportedError: as `inference_data`.

    Example:
        >>> import torch
        >>> from pyrovae import Run, make_pair
        >>> pair = make_pair(Run(network="linear", likelihood="gaussian", latent_size=2), (1, 4, 4))
        >>> small = {"annealing": Annealing(temperatures=10), "optimisation": Optimisation(steps=10)}
        >>> found = diagnose(pair, torch.rand(2, 1, 4, 4), chains=2, draws=20, warmup=20, **small)
        >>> dict(found.summary["shift"].sizes)
        {'image': 2, 'latent': 2}
    """
    told: dict[str, Any] = {"images": images, "attrs": attrs, "seed": seed}
    guide = inference_data(pair, x, draws=chains * draws, **told, **values)
    exact = exact_posterior(pair, x, chains=chains, draws=draws, warmup=warmup, stepped=stepped, **told, **values)
    summary = _beside(codes(guide), codes(exact))
    summary["diverging"] = exact["sample_stats"]["diverging"].sum(["chain", "draw"])
    log_w = torch.from_numpy(guide["sample_stats"]["log_weight"].isel(chain=0).transpose("image", "draw").values)
    summary["pareto_k"] = "image", importance_diagnostics(log_w).pareto_k.numpy()
    notes = []
    try:
        gap = _gap(pair, x, annealing, optimisation, seed, stepped, values)
        summary = summary.assign({name: ("image", getattr(gap, name).double().cpu().numpy()) for name in GAP})
    except UnsupportedError as error:
        summary = summary.assign({name: ("image", np.full(len(x), np.nan)) for name in GAP})
        notes.append(f"the inference gap is not measured: {error}")
    return Diagnosis(guide, exact, summary.assign_attrs(guide.attrs), (*caveats(summary), *notes))


def codes(data: xr.DataTree) -> xr.DataArray:
    """Draws of all latent sites side by side, over chain, draw, image and latent; a latent is called z[0] and so on."""
    posterior = data["posterior"].to_dataset()
    flat = {site: values.values.reshape(*values.shape[:3], -1) for site, values in posterior.items()}
    names = [f"{site}[{number}]" for site, values in flat.items() for number in range(values.shape[-1])]
    coords = {name: posterior[name] for name in ("chain", "draw", "image")} | {"latent": names}
    return xr.DataArray(np.concatenate(list(flat.values()), -1), coords)


def _beside(guide: xr.DataArray, exact: xr.DataArray) -> xr.Dataset:
    """The marginals of the guide against those of the posterior, and how far its chains can be trusted."""
    draws = ["chain", "draw"]
    # A chain that never moved has no variance, and R̂ is then no number below any bound.
    with np.errstate(divide="ignore", invalid="ignore"):
        std = exact.std(draws, ddof=1)
        return xr.Dataset(
            {
                "shift": (guide.mean(draws) - exact.mean(draws)) / std,
                "scale": guide.std(draws, ddof=1) / std,
                "rhat": exact.azstats.rhat(),
                "ess": exact.azstats.ess(),
            }
        )


def caveats(summary: xr.Dataset) -> Iterator[str]:
    """What casts doubt on the posterior of some images, or on their gap, if anything does."""
    agreed = ((summary["rhat"] <= RHAT) & (summary["ess"] >= ESS)).all("latent")
    sound = agreed & (summary["diverging"] == 0)
    if not sound.all():
        yield (
            f"exact posterior not to be trusted for image {_named(~sound)}: R̂ above {RHAT}, fewer than {ESS} effective "
            "draws, or divergences; longer chains may help, unless there are several modes"
        )
    short = summary["approximation"] < -SHORT * summary["approximation_se"]
    if short.any():
        yield (
            f"annealing fell short for image {_named(short)}: log p(x) is below an ELBO there, and the approximation "
            "gap means nothing"
        )


def _named(images: xr.DataArray) -> str:
    """The images for which something holds."""
    return ", ".join(str(image) for image in images["image"].values[images.values])


def _gap(
    pair: Pair,
    x: Tensor,
    annealing: Annealing,
    optimisation: Optimisation,
    seed: int,
    stepped: Callable[[], None],
    values: Mapping[str, Any],
) -> InferenceGap:
    def log_p(x: Tensor, z: Tensor) -> Tensor:
        return pair.likelihood(x, z, **values).log_prob(x)

    with pyro.validation_enabled(False), pair.evaluated(), fork_seed(derive_seed(seed, "inference gap")):
        (q, _), (_, prior) = pair.latent(x, **values), pair.latent(x[:1], **values)
        return inference_gap(q, prior, log_p, x, annealing=annealing, optimisation=optimisation, stepped=stepped)
