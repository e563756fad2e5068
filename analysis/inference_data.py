"""Draws of a pair on some images, in ArviZ's schema."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import arviz_base
import numpy as np
import pyro
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from pyrovae.errors import InputError, UnsupportedError
from pyrovae.estimators.likelihood import draws_per_chunk
from pyrovae.estimators.psis import underflows
from pyrovae.programs.inputs import check_count
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import Site, latent_sites, observed_sites
from pyrovae.programs.terms import log_weight
from pyrovae.system.provenance import software_versions

#: Variables by group, ``[chain, draw, image, ...]``; those of observed_data ``[image, ...]``.
Groups = dict[str, dict[str, Tensor]]
#: Names that ArviZ reserves.
RESERVED = ("chain", "draw", "image")
#: Dimensions of an image with three of them.
DIMS = ["channel", "row", "column"]

#: The warning where ArviZ's k̂ fails.
UNDERFLOW = (
    "log weights or log likelihoods of an image are more than 700 nats apart, where ArviZ's Pareto k̂ (psislw, loo) "
    "underflows to a small number; pyrovae.estimators.importance_diagnostics computes it from logarithms"
)


def inference_data(
    pair: Pair,
    x: Tensor,
    *,
    draws: int = 500,
    predictive: int = 100,
    images: Sequence[Any] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    seed: int = 0,
    **values: Any,
) -> xr.DataTree:
    """Draws from a guide, their densities under the model and predictive draws, as a DataTree in ArviZ's schema.

    - posterior: z ~ q(z|x) for each image, over chain, draw, image and latent.
    - sample_stats: log_weight, log p(x, z) − log q(z|x) in nats; its Pareto k̂ shows how reliable q is as a proposal.
    - log_likelihood: log p(x|z) in nats; posterior_predictive: draws from p(x|z).
    - prior: z ~ p(z), also one per image and draw; prior_predictive: draws from p(x|z) at these.
    - observed_data: the images.

    All numbers are float64. A warning says if log weights or log likelihoods are so far apart that ArviZ's k̂ fails.

    The draws of a guide are independent and form a single chain, for which R̂ is meaningless. Runs with other seeds are
    other models with other latent spaces, and not further chains.

    Args:
        pair: any pair. Its sites are the variables, except for auxiliary sites of the guide.
        x: images, ``[n, *event_shape]``.
        draws: draws per image.
        predictive: maximum number of draws with predictive images, which take most of the memory.
        images: names of the images, such as their rows in a data set; by default 0, 1, 2, …
        coords: further coordinates of the images, with a value for each: ``{"label": labels, "angle": factors[:, 0]}``.
        attrs: attributes of the tree, such as the study, β and the seed; versions are added.
        seed: seed of the draws.
        values: further arguments of the programs. The log weights do not depend on β.

    Raises:
        InputError: a coordinate has no value for each image.
        UnsupportedError: a site has more batch dimensions than the plate over images, or a name that ArviZ reserves.

    Source: the schema of InferenceData, Kumar et al. 2019, ArviZ: a unified library for exploratory analysis of
    Bayesian models in Python, JOSS 4(33).

    Example:
        >>> import torch
        >>> from pyrovae import Run, make_pair
        >>> pair = make_pair(Run(depth=1, width=8, latent_size=2), (1, 8, 8))
        >>> x, coords = torch.rand(3, 1, 8, 8), {"label": [4, 0, 2]}
        >>> data = inference_data(pair, x, draws=50, coords=coords, attrs={"beta": 1.0})
        >>> dict(data["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 50, 'image': 3, 'latent': 2}
        >>> data["posterior"]["label"].values
        array([4, 0, 2])
        >>> sorted(data.children)[:4]
        ['log_likelihood', 'observed_data', 'posterior', 'posterior_predictive']
    """
    check_count("draws", draws)
    predictive, known = min(predictive, draws), {name: np.asarray(each) for name, each in (coords or {}).items()}
    if wrong := [name for name, each in known.items() if each.shape != (len(x),)]:
        raise InputError(f"coords: expected {len(x)} values of '{wrong[0]}', one an image, got {known[wrong[0]].shape}")
    # Validation rejects grey images under a Bernoulli likelihood, for which log_prob is minus the cross-entropy.
    with (
        torch.no_grad(),
        pyro.validation_enabled(False),
        pair.evaluated(),
        fork_seed(derive_seed(seed, "inference data")),
    ):
        _, model = pair.traces(x, **values)
        dims = dimensions(model)
        chunks = [_draw(pair, x, count, True, values) for count in draws_per_chunk(predictive, x)]
        chunks += [_draw(pair, x, count, False, values) for count in draws_per_chunk(draws - predictive, x)]
    groups: Groups = {}
    for group, variables in chunks[0].items():
        parts = [chunk[group] for chunk in chunks if group in chunk]
        groups[group] = {name: torch.cat([part[name] for part in parts])[None] for name in variables}
    if _arviz_underflows(groups):
        warnings.warn(UNDERFLOW, stacklevel=2)
    along = {name: ("image", each) for name, each in known.items()}
    return in_schema(groups, model, dims, images, attrs).map_over_datasets(
        lambda group: group.assign_coords(along) if "image" in group.dims else group
    )


def dimensions(model: poutine.Trace) -> dict[str, list[str]]:
    """Names of the dimensions of each site of a model; the first is image.

    Raises:
        UnsupportedError: as `inference_data`.
    """
    latent, observed = {site: model.nodes[site] for site in latent_sites(model)}, observed_sites(model)
    if reserved := [site for site in [*latent, *observed] if site in RESERVED or "/" in site]:
        raise UnsupportedError(f"expected sites without a slash and not called {', '.join(RESERVED)}, got {reserved}")
    dims = {site: _event_dims("latent", site, latent) for site in latent}
    dims |= {site: _event_dims("pixel", site, observed) for site in observed}
    # xarray takes a variable with the name of a dimension for its coordinate.
    return {
        site: ["image", *(f"{site}_{name}" if name in dims else name for name in names)] for site, names in dims.items()
    }


def in_schema(
    groups: Groups,
    model: poutine.Trace,
    dims: Mapping[str, list[str]],
    images: Sequence[Any] | None,
    attrs: Mapping[str, Any] | None,
) -> xr.DataTree:
    """Variables by group, with ArviZ's dimensions, and the images that the model observed as ``observed_data``."""
    groups = groups | {"observed_data": {site: node["value"] for site, node in observed_sites(model).items()}}
    arrays = {
        group: {name: _in_float64(value).cpu().numpy() for name, value in variables.items()}
        for group, variables in groups.items()
    }
    all_dims = {name: dims.get(name, ["image"]) for variables in arrays.values() for name in variables}
    coords = {} if images is None else {"image": list(images)}
    attributes = {"inference_library": "pyrovae", "versions": software_versions(), **(attrs or {})}
    return arviz_base.from_dict(arrays, dims=all_dims, coords=coords, attrs={"/": attributes}, check_conventions=False)


def _arviz_underflows(groups: Groups) -> bool:
    """Whether ArviZ's k̂ of the importance weights or of the leave-one-out weights 1 / p(x|z) fails for any image."""
    log_w = [groups["sample_stats"]["log_weight"], *(-value for value in groups["log_likelihood"].values())]
    return any(bool(underflows(each[0].T).any()) for each in log_w)


def _event_dims(kind: str, site: str, sites: Mapping[str, Site]) -> list[str]:
    """Names of the event dimensions of a site, which contain its name if there are several sites of the kind."""
    node = sites[site]
    if len(node["fn"].batch_shape) != 1:
        raise UnsupportedError(f"site '{site}': expected one batch dimension, got {list(node['fn'].batch_shape)}")
    shape = node["fn"].event_shape
    names = [kind] if len(shape) == 1 else [f"{kind}_{dim}" for dim in range(len(shape))]
    if kind == "pixel" and len(shape) == len(DIMS):
        names = DIMS
    return names if len(sites) == 1 else [f"{site}_{name}" for name in names]


def _in_float64(value: Tensor) -> Tensor:
    """The value without its gradient, in float64 unless it is whole or boolean."""
    return value.detach().double() if value.is_floating_point() else value.detach()


def _draw(pair: Pair, x: Tensor, count: int, predictive: bool, values: Mapping[str, Any]) -> Groups:
    """Draws of each image, ``[count, n, ...]``, with or without those from p(z) and predictive images."""
    repeated = x.expand(count, *x.shape).flatten(0, 1)
    guide, model = pair.traces(repeated, **values)
    groups: Groups = {
        "posterior": {site: model.nodes[site]["value"] for site in latent_sites(model)},
        "sample_stats": {"log_weight": log_weight(guide, model)},
        "log_likelihood": {site: node["fn"].log_prob(node["value"]) for site, node in observed_sites(model).items()},
    }
    if predictive:
        groups["posterior_predictive"] = {site: node["fn"].sample() for site, node in observed_sites(model).items()}
        generated = pair.simulate(repeated, **values)
        groups["prior"] = {site: generated.nodes[site]["value"] for site in latent_sites(generated)}
        groups["prior_predictive"] = {site: node["value"] for site, node in observed_sites(generated).items()}
    return {
        group: {name: value.unflatten(0, (count, len(x))) for name, value in variables.items()}
        for group, variables in groups.items()
    }
