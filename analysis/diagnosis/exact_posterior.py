"""The exact posterior p(z|x) of images, by Hamiltonian Monte Carlo through the decoder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pyrovae.analysis.inference_data import dimensions, in_schema
from pyrovae.errors import UnsupportedError
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.pair import Pair, latent_sites, log_weight
from pyrovae.system.device import one_thread

#: Deepest tree of NUTS, a trajectory of at most 2⁸ − 1 steps.
DEPTH = 8


def exact_posterior(
    pair: Pair,
    x: Tensor,
    *,
    chains: int = 4,
    draws: int = 200,
    warmup: int = 200,
    images: Sequence[Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    seed: int = 0,
    stepped: Callable[[], None] = lambda: None,
    **values: Any,
) -> xr.DataTree:
    """Draws of p(z|x) ∝ p(z) p(x|z) of each image by Pyro's NUTS, as a DataTree in ArviZ's schema.

    Every image has chains of its own. Every other one starts at a draw of the guide, those between at draws of p(z):
    where these find a mode that the guide has missed, R̂ is large. The more chains, the less likely none does.

    - posterior: z, over chain, draw, image and latent, as in `inference_data`.
    - sample_stats: diverging, whether a trajectory left the posterior because its curvature is too large.
    - observed_data: the images.

    Args:
        pair: a pair whose model has continuous latent sites; the guide serves for starting points alone.
        x: images, ``[n, *event_shape]``.
        chains, draws, warmup: for each image.
        images, attrs, seed: as in `inference_data`.
        stepped: called after every draw, those of the warm-up too.
        values: what the model may take beside images. β, and γ, are 1, as the posterior is that of the model.

    Raises:
        UnsupportedError: as in `inference_data`; or the model has a factor or a scale, so that its posterior is not
            that of its latent and observed sites, which everything else is measured under.

    Cost: chains · (draws + warmup) trajectories an image, of at most 2⁸ − 1 gradients each.

    Source: Hoffman & Gelman 2014, The No-U-Turn Sampler, JMLR 15; R̂ and effective sample size by ArviZ, after Vehtari
    et al. 2021, Rank-normalization, folding, and localization, Bayesian Analysis 16.

    Example:
        >>> import torch
        >>> from pyrovae import Run, make_pair
        >>> pair = make_pair(Run(network="linear", likelihood="gaussian", latent_size=2), (1, 4, 4))
        >>> data = exact_posterior(pair, torch.rand(2, 1, 4, 4), chains=2, draws=20, warmup=20)
        >>> dict(data["posterior"]["z"].sizes)
        {'chain': 2, 'draw': 20, 'image': 2, 'latent': 2}
    """
    values |= {"beta": 1.0, "gamma": 1.0}
    with torch.no_grad(), pyro.validation_enabled(False), pair.evaluated():
        guide, model = pair.traces(x, **values)
    dims, of_images = dimensions(model), []
    _check_unweighted(guide, model)
    with one_thread(), pair.evaluated():
        for number, image in enumerate(x):
            found = []
            for chain in range(chains):
                with fork_seed(derive_seed(seed, f"exact posterior {number}", chain)):
                    found.append(_chain(pair, image[None], chain % 2 == 0, draws, warmup, stepped, values))
            of_images.append({name: torch.stack([each[name] for each in found]) for name in found[0]})
    variables = {name: torch.stack([each[name] for each in of_images], 2) for name in of_images[0]}
    groups = {"sample_stats": {"diverging": variables.pop("diverging")}}
    return in_schema({"posterior": variables} | groups, model, dims, images, attrs)


def _check_unweighted(guide: poutine.Trace, model: poutine.Trace) -> None:
    """Raises UnsupportedError if the model's own density, which NUTS takes, is not that of its sites."""
    own = model.log_prob_sum()
    of_sites = log_weight(guide, model).sum() + guide.log_prob_sum()
    if not torch.allclose(own, of_sites, rtol=1e-3, atol=1e-2, equal_nan=True):
        raise UnsupportedError("expected a model without a factor, and without a scale other than β")


def _chain(
    pair: Pair,
    x: Tensor,
    from_guide: bool,
    draws: int,
    warmup: int,
    stepped: Callable[[], None],
    values: Mapping[str, Any],
) -> dict[str, Tensor]:
    """One chain of one image, ``[draws, *latent_shape]`` by latent site, and which draws diverged, ``[draws]``."""
    with torch.no_grad(), pyro.validation_enabled(False):
        start = pair.traces(x, **values)[1] if from_guide else pair.generate(x, **values)
    sites = latent_sites(start)
    init = init_to_value(values={site: start.nodes[site]["value"] for site in sites})
    kernel = NUTS(pair.program(**values), full_mass=True, max_tree_depth=DEPTH, init_strategy=init)
    mcmc = MCMC(kernel, draws, warmup, hook_fn=lambda *_: stepped(), disable_progbar=True)
    mcmc.run(x)
    diverging = torch.zeros(draws, dtype=torch.bool)
    diverging[mcmc.diagnostics()["divergences"]["chain 0"]] = True
    return {site: mcmc.get_samples()[site][:, 0].detach() for site in sites} | {"diverging": diverging}
