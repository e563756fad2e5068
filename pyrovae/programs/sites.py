"""Queries on Pyro traces: which sites are latent, observed or auxiliary."""

from typing import Any

from pyro import poutine
from pyro.poutine.util import site_is_subsample

Site = dict[str, Any]
NamedSite = tuple[str, Site]
#: Prefix of the deterministic sites with which a model adds terms to the rate.
RATE = "rate/"


def sample_sites(trace: poutine.Trace) -> list[NamedSite]:
    """The sites that have a density: sample sites other than plates and deterministic values."""
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    ]


def latent_sites(trace: poutine.Trace) -> list[str]:
    """Names of the latent sites, in the order in which they were sampled."""
    return [name for name, site in sample_sites(trace) if not _is_observed(site)]


def observed_sites(model: poutine.Trace) -> dict[str, Site]:
    """The sites that make up the distortion, which a ``pyro.factor`` is not part of."""
    return {name: site for name, site in sample_sites(model) if _is_observed(site) and not _is_auxiliary(site)}


def auxiliary_sites(guide: poutine.Trace) -> list[NamedSite]:
    """Latent sites of a guide that its model does not have."""
    return [(name, site) for name, site in sample_sites(guide) if not site["is_observed"] and _is_auxiliary(site)]


def rate_sites(model: poutine.Trace) -> list[NamedSite]:
    """Deterministic sites that a model declares as terms of the rate, without their prefix."""
    return [
        (name.removeprefix(RATE), site)
        for name, site in model.nodes.items()
        if name.startswith(RATE) and site["infer"].get("_deterministic")
    ]


def _is_observed(site: Site) -> bool:
    """Whether a site has data, even if `Pair.simulate` has replaced it by a draw."""
    return site["is_observed"] or site["infer"].get("was_observed", False)


def _is_auxiliary(site: Site) -> bool:
    return bool(site["infer"].get("is_auxiliary"))
