"""Distortion, rate and loss of each image, summed from the traces of a guide and a model."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.programs.distributions import log_ratio
from pyrovae.programs.sites import auxiliary_sites, rate_sites, sample_sites

Divergence = Callable[[Distribution, Distribution, Tensor], Tensor]


class Terms(NamedTuple):
    """Loss, distortion and rates (by latent site) of each image, ``[batch]`` each, in nats per image."""

    loss: Tensor
    distortion: Tensor
    rates: dict[str, Tensor]

    def run(self, number: int) -> "Terms":
        """The terms of one of several runs."""
        rates = {site: rate[number] for site, rate in self.rates.items()}
        return Terms(self.loss[number], self.distortion[number], rates)

    @property
    def rate(self) -> Tensor:
        """The rate R, summed over latent sites."""
        return sum(self.rates.values(), torch.zeros_like(self.distortion))


def sum_terms(guide: poutine.Trace, model: poutine.Trace, divergence: Divergence) -> Terms:
    """Sums the log-densities of a guide and of the model replayed against it.

    Args:
        divergence: (q, p, z ~ q) → KL(q ‖ p) or an estimate of it.
    """
    loss, distortion, rates = [], [], {}
    for name, site in auxiliary_sites(guide):
        rates[name] = _per_image(site["fn"].log_prob(site["value"]))
        loss.append(site["scale"] * rates[name])
    for name, site in rate_sites(model):
        rates[name] = _per_image(site["value"])
    for name, site in sample_sites(model):
        if site["is_observed"]:
            term = -_per_image(site["fn"].log_prob(site["value"]))
            if not site["infer"].get("is_auxiliary"):
                distortion.append(term)
        else:
            term = rates[name] = _per_image(divergence(guide.nodes[name]["fn"], site["fn"], site["value"]))
        loss.append(site["scale"] * term)
    zero = torch.zeros_like(loss[0])
    return Terms(sum(loss, zero), sum(distortion, zero), rates)


def log_weight(guide: poutine.Trace, model: poutine.Trace) -> Tensor:
    """log p(x, z) − log q(z|x) at the draws in the traces that `Pair.traces` returns, ``[batch]``."""
    terms = sum_terms(guide, model, log_ratio)
    return -terms.distortion - terms.rate


def _per_image(term: Tensor) -> Tensor:
    """Sums over all dimensions but the last one, which is the plate over images."""
    return term.flatten(0, -2).sum(0) if term.dim() > 1 else term
