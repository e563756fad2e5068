"""Exact posteriors p(z|x) by Hamiltonian Monte Carlo through the decoder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pyrovae.analysis.diagnosis.chains import ChainSettings
from pyrovae.analysis.inference_data import dimensions, in_schema
from pyrovae.errors import UnsupportedError
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import latent_sites
from pyrovae.programs.terms import log_weight
from pyrovae.system.device import one_thread

#: Maximum tree depth of NUTS: a trajectory has at most 2⁸ − 1 steps.
MAX_TREE_DEPTH = 8


def exact_posterior(
    pair: Pair,
    x: Tensor,
    *,
    nuts: ChainSettings = ChainSettings(),
    images: Sequence[Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    seed: int = 0,
    stepped: Callable[[], None] = lambda: None,
    **values: Any,
) -> xr.DataTree:
    """Draws from p(z|x) ∝ p(z) p(x|z) of each image by Pyro's NUTS, as a DataTree in ArviZ's schema.

    Each image has its own chains. They start alternately at a draw of the guide and at a draw of p(z): if a chain of
    the second kind finds a mode that the guide misses, R̂ is large. More chains make it less likely that all miss it.

    - posterior: z, over chain, draw, image and latent, as in `inference_data`.
    - sample_stats: diverging, whether a trajectory diverged because the curvature is too large.
    - observed_data: the images.

    Args:
        pair: a pair whose model has continuous latent sites; its guide only provides starting points.
        x: images, ``[n, *event_shape]``.
        nuts: number and length of the chains.
        images, attrs, seed: as in `inference_data`.
        stepped: called after every trajectory, including the warm-up.
        values: further arguments of the model. β and γ are set to 1, because the posterior is that of the model.

    Raises:
        UnsupportedError: as in `inference_data`; or the model has a factor or a scale, so that its posterior differs
            from that of its latent and observed sites, on which all other measurements rest.

    Cost: chains · (draws + warmup) trajectories per image, with at most 2⁸ − 1 gradients each.

    Source: Hoffman & Gelman 2014, The No-U-Turn Sampler, JMLR 15.

    Example:
        >>> import torch
        >>> from pyrovae import Run, make_pair
        >>> pair = make_pair(Run(network="linear", likelihood="gaussian", latent_size=2), (1, 4, 4))
        >>> data = exact_posterior(pair, torch.rand(2, 1, 4, 4), nuts=ChainSettings(chains=2, draws=20, warmup=20))
        >>> dict(data["posterior"]["z"].sizes)
        {'chain': 2, 'draw': 20, 'image': 2, 'latent': 2}
    """
    values |= {"beta": 1.0, "gamma": 1.0}
    with torch.no_grad(), pyro.validation_enabled(False), pair.evaluated():
        guide, model = pair.traces(x, **values)
    dims, per_image = dimensions(model), []
    _check_unweighted(guide, model)
    with one_thread(), pair.evaluated():
        for number, image in enumerate(x):
            chains = []
            for chain in range(nuts.chains):
                with fork_seed(derive_seed(seed, f"exact posterior {number}", chain)):
                    start = _starting_point(pair, image[None], chain % 2 == 0, values)
                    chains.append(_chain(pair, image[None], start, nuts, stepped, values))
            per_image.append({name: torch.stack([each[name] for each in chains]) for name in chains[0]})
    variables = {name: torch.stack([each[name] for each in per_image], 2) for name in per_image[0]}
    groups = {"sample_stats": {"diverging": variables.pop("diverging")}}
    return in_schema({"posterior": variables} | groups, model, dims, images, attrs)


def _check_unweighted(guide: poutine.Trace, model: poutine.Trace) -> None:
    """Raises UnsupportedError if the model's joint density, which NUTS uses, is not the product over its sites."""
    joint = model.log_prob_sum()
    sites = log_weight(guide, model).sum() + guide.log_prob_sum()
    if not torch.allclose(joint, sites, rtol=1e-3, atol=1e-2, equal_nan=True):
        raise UnsupportedError("expected a model without a factor, and without a scale other than β")


def _starting_point(pair: Pair, x: Tensor, from_guide: bool, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Latent values of one image, drawn from the guide or from p(z)."""
    with torch.no_grad(), pyro.validation_enabled(False):
        trace = pair.traces(x, **values)[1] if from_guide else pair.simulate(x, **values)
    return {site: trace.nodes[site]["value"] for site in latent_sites(trace)}


def _chain(
    pair: Pair,
    x: Tensor,
    start: dict[str, Tensor],
    nuts: ChainSettings,
    stepped: Callable[[], None],
    values: Mapping[str, Any],
) -> dict[str, Tensor]:
    """One chain of one image: ``[draws, *latent_shape]`` by latent site, and which draws diverged, ``[draws]``."""
    init = init_to_value(values=start)
    kernel = NUTS(pair.program(**values), full_mass=True, max_tree_depth=MAX_TREE_DEPTH, init_strategy=init)
    mcmc = MCMC(kernel, nuts.draws, nuts.warmup, hook_fn=lambda *_: stepped(), disable_progbar=True)
    mcmc.run(x)
    diverging = torch.zeros(nuts.draws, dtype=torch.bool)
    diverging[mcmc.diagnostics()["divergences"]["chain 0"]] = True
    return {site: mcmc.get_samples()[site][:, 0].detach() for site in start} | {"diverging": diverging}
