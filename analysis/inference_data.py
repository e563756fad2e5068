"""A pair and some images as ArviZ looks at inference: a DataTree in its schema."""

from collections.abc import Mapping, Sequence
from typing import Any

import arviz_base
import pyro
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from pyrovae.errors import UnsupportedError
from pyrovae.estimators.likelihood import portions
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.pair import Pair, Site, latent_sites, log_weight, observed_sites
from pyrovae.system.provenance import software_versions

#: Variables by group, ``[chain, draw, image, ...]``; those of observed_data ``[image, ...]``.
Groups = dict[str, dict[str, Tensor]]
#: Names that ArviZ has another use for.
TAKEN = ("chain", "draw", "image")
#: The sides of an image that has three of them.
SIDES = ["channel", "row", "column"]


def inference_data(
    pair: Pair,
    x: Tensor,
    *,
    draws: int = 500,
    predictive: int = 100,
    images: Sequence[Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    seed: int = 0,
    **values: Any,
) -> xr.DataTree:
    """Draws of a guide, and what the model says of them, as a DataTree in ArviZ's schema.

    - posterior: z ~ q(z|x) of each image, over chain, draw, image and latent.
    - sample_stats: log_weight, log p(x, z) − log q(z|x) in nats, whose Pareto k̂ tells how far q can be trusted.
    - log_likelihood: log p(x|z) in nats; posterior_predictive: images drawn from it.
    - prior: z ~ p(z), one for each image, too; prior_predictive: images drawn from p(x|z).
    - observed_data: the images.

    A guide's draws are independent of each other and make one chain, of which R̂ says nothing. Runs that differ in their
    seed are guides of other models: restarts are no chains, and are never put together as such.

    Args:
        pair: any pair, whoever made it. Its sites are the variables, but for auxiliary ones of the guide.
        x: images, ``[n, *event_shape]``.
        draws: of each image.
        predictive: the most draws of which images are drawn, which is what takes memory.
        images: what the images are called, such as their rows in a data set; by default 0, 1, 2, …
        attrs: attributes of the whole, such as the study, β and the seed; versions are added.
        seed: of the draws.
        values: what the programs may take beside images; log weights do not depend on β.

    Raises:
        UnsupportedError: a site has more batch dimensions than the plate over images, or a name that ArviZ has another
            use for.

    Source: the schema of InferenceData, Kumar et al. 2019, ArviZ a unified library for exploratory analysis of
    Bayesian models in Python, JOSS 4(33).

    Example:
        >>> import torch
        >>> from pyrovae import Run, make_pair
        >>> pair = make_pair(Run(depth=1, width=8, latent_size=2), (1, 8, 8))
        >>> data = inference_data(pair, torch.rand(3, 1, 8, 8), draws=50, attrs={"beta": 1.0})
        >>> dict(data["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 50, 'image': 3, 'latent': 2}
        >>> sorted(data.children)[:4]
        ['log_likelihood', 'observed_data', 'posterior', 'posterior_predictive']
    """
    predictive = min(predictive, draws)
    # Validation would refuse grey images under a Bernoulli likelihood, which are its cross-entropy.
    with (
        torch.no_grad(),
        pyro.validation_enabled(False),
        pair.evaluated(),
        fork_seed(derive_seed(seed, "inference data")),
    ):
        _, model = pair.traces(x, **values)
        dims = dimensions(model)
        pieces = [_drawn(pair, x, count, True, values) for count in portions(predictive, x)]
        pieces += [_drawn(pair, x, count, False, values) for count in portions(draws - predictive, x)]
    groups: Groups = {}
    for group, variables in pieces[0].items():
        found = [piece[group] for piece in pieces if group in piece]
        groups[group] = {name: torch.cat([each[name] for each in found])[None] for name in variables}
    return in_schema(groups, model, dims, images, attrs)


def dimensions(model: poutine.Trace) -> dict[str, list[str]]:
    """Names of the dimensions of each site of a model, image first.

    Raises:
        UnsupportedError: as `inference_data`.
    """
    latent, observed = {site: model.nodes[site] for site in latent_sites(model)}, observed_sites(model)
    if taken := [site for site in [*latent, *observed] if site in TAKEN or "/" in site]:
        raise UnsupportedError(f"expected sites without a slash and not called {', '.join(TAKEN)}, got {taken}")
    sides = {site: _sides("latent", site, latent) for site in latent}
    sides |= {site: _sides("pixel", site, observed) for site in observed}
    # A variable called as a dimension would be taken for its coordinate.
    return {
        site: ["image", *(f"{site}_{name}" if name in sides else name for name in names)]
        for site, names in sides.items()
    }


def in_schema(
    groups: Groups,
    model: poutine.Trace,
    dims: Mapping[str, list[str]],
    images: Sequence[Any] | None,
    attrs: Mapping[str, Any] | None,
) -> xr.DataTree:
    """Variables by group, with ArviZ's dimensions, beside the images that a trace of the model has observed."""
    groups = groups | {"observed_data": {site: node["value"] for site, node in observed_sites(model).items()}}
    arrays = {
        group: {name: value.detach().cpu().numpy() for name, value in variables.items()}
        for group, variables in groups.items()
    }
    of_images = {name: dims.get(name, ["image"]) for variables in arrays.values() for name in variables}
    coords = {} if images is None else {"image": list(images)}
    whole = {"inference_library": "pyrovae", "versions": software_versions(), **(attrs or {})}
    return arviz_base.from_dict(arrays, dims=of_images, coords=coords, attrs={"/": whole}, check_conventions=False)


def _sides(kind: str, site: str, sites: Mapping[str, Site]) -> list[str]:
    """Names of the sides of a site's values, which tell sites apart where there are several of a kind."""
    node = sites[site]
    if len(node["fn"].batch_shape) != 1:
        raise UnsupportedError(f"site '{site}': expected one batch dimension, got {list(node['fn'].batch_shape)}")
    shape = node["fn"].event_shape
    names = SIDES if kind == "pixel" and len(shape) == len(SIDES) else [f"{kind}_{side}" for side in range(len(shape))]
    names = [kind] if len(shape) == 1 else names
    return names if len(sites) == 1 else [f"{site}_{name}" for name in names]


def _drawn(pair: Pair, x: Tensor, count: int, images: bool, values: Mapping[str, Any]) -> Groups:
    """So many draws of each image, ``[count, n, ...]``; with images drawn from them, and from p(z), or without."""
    repeated = x.expand(count, *x.shape).flatten(0, 1)
    guide, model = pair.traces(repeated, **values)
    groups: Groups = {
        "posterior": {site: model.nodes[site]["value"] for site in latent_sites(model)},
        "sample_stats": {"log_weight": log_weight(guide, model)},
        "log_likelihood": {site: node["fn"].log_prob(node["value"]) for site, node in observed_sites(model).items()},
    }
    if images:
        groups["posterior_predictive"] = {site: node["fn"].sample() for site, node in observed_sites(model).items()}
        generated = pair.generate(repeated, **values)
        groups["prior"] = {site: generated.nodes[site]["value"] for site in latent_sites(generated)}
        groups["prior_predictive"] = {site: node["value"] for site, node in observed_sites(generated).items()}
    return {
        group: {name: value.unflatten(0, (count, len(x))) for name, value in variables.items()}
        for group, variables in groups.items()
    }
