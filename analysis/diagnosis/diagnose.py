"""Compare a trained guide q(z|x) with exact posteriors (NUTS), and measure its inference gap."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import arviz_stats  # noqa: F401  # the accessor azstats
import numpy as np
import pyro
import torch
import xarray as xr
from torch import Tensor

from pyrovae.analysis.diagnosis.chains import ChainSettings
from pyrovae.analysis.diagnosis.exact_posterior import exact_posterior
from pyrovae.analysis.inference_data import inference_data
from pyrovae.errors import UnsupportedError
from pyrovae.estimators import Annealing, InferenceGap, Optimisation, importance_diagnostics, inference_gap
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.pair import Pair

#: Largest R̂ and smallest effective sample size at which the chains of an image count as converged.
MAX_RHAT, MIN_ESS = 1.05, 100
#: A negative approximation gap beyond this many standard errors shows that annealing fell short.
SIGNIFICANT = 4
#: Fields of `InferenceGap` in the summary.
GAP = ("log_likelihood", "elbo", "approximation", "amortisation", "approximation_se", "amortisation_se")


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """A guide and the exact posteriors of some images.

    Attributes:
        guide: draws from q(z|x), from `inference_data`.
        exact: draws from p(z|x), from `exact_posterior`.
        summary: by image and latent: difference of the means in posterior standard deviations (shift), ratio of the
            standard deviations q / p (scale), R̂ and effective sample size of the chains (rhat, ess); by image: number
            of divergences (diverging), Pareto k̂ of the guide's importance weights (pareto_k), and the fields of
            `InferenceGap` in nats.
        notes: what could not be measured, and results that are unreliable.
    """

    guide: xr.DataTree
    exact: xr.DataTree
    summary: xr.Dataset
    notes: tuple[str, ...]


def diagnose(
    pair: Pair,
    x: Tensor,
    *,
    nuts: ChainSettings = ChainSettings(),
    annealing: Annealing = Annealing(chains=32),
    optimisation: Optimisation = Optimisation(),
    images: Sequence[Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    seed: int = 0,
    stepped: Callable[[], None] = lambda: None,
    **values: Any,
) -> Diagnosis:
    """Compares q(z|x) of some images with their exact posteriors, and measures its inference gap.

    Args:
        pair, x, images, attrs, seed, values: as in `inference_data`.
        nuts: as in `exact_posterior`; the guide is drawn from as often as all chains together.
        annealing, optimisation: as in `inference_gap`.
        stepped: called after every step of `exact_posterior` and of `inference_gap`.

    Raises:
        UnsupportedError: as `exact_posterior`.

    Source: R̂ and effective sample size are ArviZ's, after Vehtari et al. 2021, Rank-normalization, folding, and
    localization, Bayesian Analysis 16.

    Example:
        >>> import torch
        >>> from pyrovae import Run, make_pair
        >>> pair = make_pair(Run(network="linear", likelihood="gaussian", latent_size=2), (1, 4, 4))
        >>> small = {"annealing": Annealing(temperatures=10), "optimisation": Optimisation(steps=10)}
        >>> diagnosis = diagnose(pair, torch.rand(2, 1, 4, 4), nuts=ChainSettings(2, draws=20, warmup=20), **small)
        >>> dict(diagnosis.summary["shift"].sizes)
        {'image': 2, 'latent': 2}
    """
    common: dict[str, Any] = {"images": images, "attrs": attrs, "seed": seed, **values}
    guide = inference_data(pair, x, draws=nuts.total_draws, **common)
    exact = exact_posterior(pair, x, nuts=nuts, stepped=stepped, **common)
    summary = _compare_marginals(latents(guide), latents(exact))
    summary["diverging"] = exact["sample_stats"]["diverging"].sum(["chain", "draw"])
    log_w = torch.from_numpy(guide["sample_stats"]["log_weight"].isel(chain=0).transpose("image", "draw").values)
    summary["pareto_k"] = "image", importance_diagnostics(log_w).pareto_k.numpy()
    notes = []
    try:
        gap = _inference_gap(pair, x, annealing, optimisation, seed, stepped, values)
        summary = summary.assign({name: ("image", getattr(gap, name).double().cpu().numpy()) for name in GAP})
    except UnsupportedError as error:
        summary = summary.assign({name: ("image", np.full(len(x), np.nan)) for name in GAP})
        notes.append(f"the inference gap is not measured: {error}")
    return Diagnosis(guide, exact, summary.assign_attrs(guide.attrs), (*caveats(summary), *notes))


def latents(data: xr.DataTree) -> xr.DataArray:
    """Draws of all latent sites, flattened: over chain, draw, image and latent, which is called z[0], z[1], …"""
    posterior = data["posterior"].to_dataset()
    flat = {site: values.values.reshape(*values.shape[:3], -1) for site, values in posterior.items()}
    names = [f"{site}[{number}]" for site, values in flat.items() for number in range(values.shape[-1])]
    coords = {name: posterior[name] for name in ("chain", "draw", "image")} | {"latent": names}
    return xr.DataArray(np.concatenate(list(flat.values()), -1), coords)


def caveats(summary: xr.Dataset) -> Iterator[str]:
    """One line for all images whose chains did not converge, and one for those on which annealing fell short."""
    converged = ((summary["rhat"] <= MAX_RHAT) & (summary["ess"] >= MIN_ESS)).all("latent")
    reliable = converged & (summary["diverging"] == 0)
    if not reliable.all():
        yield (
            f"unreliable exact posterior for image {_names(~reliable)}: R̂ above {MAX_RHAT}, effective sample size "
            f"below {MIN_ESS}, or divergences; longer chains may help, unless the posterior has several modes"
        )
    short = summary["approximation"] < -SIGNIFICANT * summary["approximation_se"]
    if short.any():
        yield (
            f"annealing fell short for image {_names(short)}: its log p(x) is below an ELBO, so the approximation gap "
            "is meaningless"
        )


def _compare_marginals(guide: xr.DataArray, exact: xr.DataArray) -> xr.Dataset:
    """Shift and scale of the guide's marginals, and convergence statistics of the chains."""
    draws = ["chain", "draw"]
    # A chain that never moves has no variance, so R̂ is NaN, which counts as not converged.
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


def _inference_gap(
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


def _names(images: xr.DataArray) -> str:
    """The images for which a condition holds."""
    return ", ".join(str(image) for image in images["image"].values[images.values])
