"""Checks on the traces of a pair, and the properties of the pair that they show."""

from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.util import check_model_guide_match
from torch.distributions import Distribution, Independent

from pyrovae.errors import InputError
from pyrovae.programs.distributions import closed_form_kl, noise_shape
from pyrovae.programs.sites import Site, auxiliary_sites, latent_sites, observed_sites, sample_sites


@dataclass(frozen=True)
class PairProperties:
    """Properties of a pair, from one validated forward pass.

    Attributes:
        noise_shapes: shape of the noise of one image by latent site; None where noise cannot be injected.
        closed_form: whether the rate is a closed form. Otherwise, or if it depends on the draw of another site, it is
            a Monte Carlo estimate.
        distortion_kind: a cross-entropy if the images are outside the support of the likelihood, else a negative
            log-density or log-probability.
    """

    noise_shapes: dict[str, torch.Size | None]
    closed_form: bool
    distortion_kind: str

    def as_provenance(self) -> dict[str, str]:
        """The kinds of distortion and rate, as stored in the results."""
        rate_kind = "closed form" if self.closed_form else "Monte Carlo"
        return {"rate_kind": rate_kind, "distortion_kind": self.distortion_kind}


def check_traces(guide: poutine.Trace, model: poutine.Trace, batch: int) -> PairProperties:
    """Checks the traces of a guide and of the model replayed against it, for a batch of images.

    Raises:
        InputError: model and guide have different latent sites; a site lacks one entry per image, is not
            reparameterized, or has different scales in model and guide.
        ValueError: Pyro found a mismatch, a wrong shape or a value outside a support.
    """
    _check_same_sites(guide, model)
    check_model_guide_match(model, guide)
    for trace in (guide, model):
        trace.compute_log_prob()
    for name, site in [*sample_sites(model), *sample_sites(guide)]:
        _check_one_entry_per_image(name, site, batch)
    for name, site in sample_sites(guide):
        _check_reparameterized(name, site)
    for name, site in sample_sites(model):
        if not site["is_observed"]:
            _check_same_scale(name, guide.nodes[name]["scale"], site["scale"])
    return PairProperties(
        noise_shapes={name: _noise_per_image(guide.nodes[name]["fn"], batch) for name in latent_sites(guide)},
        closed_form=_has_closed_form(guide, model),
        distortion_kind=_distortion_kind(model),
    )


def _check_same_sites(guide: poutine.Trace, model: poutine.Trace) -> None:
    auxiliary = {name for name, _ in auxiliary_sites(guide)}
    latent, guided = set(latent_sites(model)), set(latent_sites(guide)) - auxiliary
    if latent != guided:
        raise InputError(
            f"guide: expected the latent sites of the model, {sorted(latent)}, got {sorted(guided)}; "
            "a model and a guide have to belong together"
        )


def _check_one_entry_per_image(name: str, site: Site, batch: int) -> None:
    shape = site["fn"].batch_shape
    if shape[-1:] != (batch,):
        raise InputError(
            f"site '{name}': expected one entry per image, a batch shape that ends in {batch}, "
            f"got {list(shape)}; is the site outside the plate over images?"
        )


def _check_reparameterized(name: str, site: Site) -> None:
    if not site["fn"].has_rsample:
        raise InputError(
            f"site '{name}': expected a reparameterized guide, whose samples have a gradient, got "
            f"{_innermost(site['fn'])}, which has no rsample"
        )


def _innermost(q: Distribution) -> str:
    return _innermost(q.base_dist) if isinstance(q, Independent) else type(q).__name__


def _check_same_scale(name: str, guide_scale: float, model_scale: float) -> None:
    if guide_scale != model_scale:
        raise InputError(
            f"site '{name}': expected one scale in model and guide, got {model_scale} and {guide_scale}; "
            "put the site under poutine.scale(scale=beta) in both"
        )


def _noise_per_image(q: Distribution, batch: int) -> torch.Size | None:
    shape = noise_shape(q)
    return shape[1:] if shape is not None and shape[:1] == (batch,) else None


def _has_closed_form(guide: poutine.Trace, model: poutine.Trace) -> bool:
    names = latent_sites(model)
    if latent_sites(guide) != names or len(names) != 1:
        return False
    return closed_form_kl(*(trace.nodes[names[0]]["fn"] for trace in (guide, model))) is not None


def _distortion_kind(model: poutine.Trace) -> str:
    observed = observed_sites(model).values()
    if not all(site["fn"].support.check(site["value"]).all() for site in observed):
        return "cross-entropy"
    discrete = any(site["fn"].support.is_discrete for site in observed)
    kind = "negative log-probability" if discrete else "negative log-density"
    given = {name for site in observed if (name := getattr(site["fn"].support, "given", None))}
    return " ".join([kind, *(f"given {name}" for name in sorted(given))])
