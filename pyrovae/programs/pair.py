"""A model and a guide that belong together: images in, distortion and rate per image out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_model_guide_match
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from pyrovae.data import as_input
from pyrovae.errors import InputError, UnsupportedError
from pyrovae.programs.distributions import closed_form_kl, kl, log_ratio, noise_shape
from pyrovae.programs.handlers import LocalParams, Noise, SubstituteLatent

Site = dict[str, Any]
#: How a model names what it tells of the rate beside its latent sites.
RATE = "rate/"


class Terms(NamedTuple):
    """What one pass over a batch gives, each ``[batch]``, in nats per image; ``rates`` by latent site."""

    loss: Tensor
    distortion: Tensor
    rates: dict[str, Tensor]

    @property
    def rate(self) -> Tensor:
        """The rate R, summed over latent sites."""
        return sum(self.rates.values(), torch.zeros_like(self.distortion))


@runtime_checkable
class Bank(Protocol):
    """A part that holds encodings of the training images, and has to be told to renew them."""

    interval: int
    """Training steps between renewals."""

    def refresh(self, images: Callable[[Tensor], Tensor], size: int, generator: torch.Generator | None = None) -> None:
        """Encodes all training images anew, or, with a generator, as many as training needs."""


class Pair(nn.Module):
    """A Pyro model p(x, z) and a guide q(z|x), called as one module.

    The pair knows no site by name. It runs the guide, replays the model, and sums over the trace:
    observed sites make up the distortion D = −log p(x|z), latent sites the rate
    R = KL(q(z|x) ‖ p(z)), and each term enters the loss with the scale that the programs gave it, so
    that under ``poutine.scale(scale=beta)`` the loss is D + β R.

    A site's share of the rate is a closed form where there is one, and guide and model draw the same sites in one
    order: only then is what p conditions on drawn before the site that the closed form integrates out. Otherwise it is
    log q − log p at the draw. Auxiliary sites of the guide add their log q.

    A model may tell a further part of R, weighted in whatever way, as a deterministic site whose name begins with
    "rate/"; what weighs in the loss is then a ``pyro.factor`` of its own.

    Both programs are called as ``program(x, **values)`` with those values that they name, and hold their images in a
    plate.

    Example:
        >>> import torch
        >>> from pyrovae.build import make_pair
        >>> from pyrovae.study.grid import Run
        >>> pair = make_pair(Run(depth=1, width=8), event_shape=(1, 8, 8))
        >>> terms = pair(torch.rand(5, 1, 8, 8), beta=0.5)
        >>> torch.allclose(terms.loss, terms.distortion + 0.5 * terms.rate)
        True
    """

    def __init__(self, model: nn.Module, guide: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.guide = guide

    def forward(self, x: Tensor, noise: Mapping[str, Tensor] | None = None, **values: float | Tensor) -> Terms:
        """Distortion, rate and loss of each image.

        Args:
            x: images, ``[batch, *event_shape]``.
            noise: standard normal draws by latent site; without it Pyro draws.
            values: what the programs may take beside the images, β first of all; each gets those that it names.
        """
        guide, model = self.traces(x, noise, **values)
        return _terms(guide, model, kl if latent_sites(guide) == latent_sites(model) else log_ratio)

    def log_weights(self, x: Tensor, particles: int, **values: Any) -> Tensor:
        """log p(x, z) − log q(z|x) at draws z ~ q(z|x): images ``[n, *event_shape]`` → ``[particles, n]``.

        With one latent and one observed site the guide runs once for all draws of an image, else once for each.
        """
        repeated = x.expand(particles, *x.shape).flatten(0, 1)
        try:
            q, prior = self.latent(x, **values)
            z = q.sample((particles,))
            log_p = self.likelihood(repeated, z.flatten(0, 1), **values).log_prob(repeated)
            return log_p.unflatten(0, (particles, -1)) - log_ratio(q, prior, z)
        except UnsupportedError:
            return log_weight(*self.traces(repeated, **values)).unflatten(0, (particles, -1))

    def traces(
        self, x: Tensor, noise: Mapping[str, Tensor] | None = None, **values: float | Tensor
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Traces of the guide, and of the model replayed against it."""
        guide = self._guide_trace(x, noise, **values)
        return guide, self._model_trace(guide, x, **values)

    def _guide_trace(self, x: Tensor, noise: Mapping[str, Tensor] | None, **values: float | Tensor) -> poutine.Trace:
        with LocalParams(), Noise(noise or {}):
            return poutine.trace(self.guide).get_trace(x, **_taken(self.guide, self.model, values))

    def _model_trace(self, guide: poutine.Trace, x: Tensor, **values: float | Tensor) -> poutine.Trace:
        with LocalParams():
            replayed = poutine.replay(self.model, trace=guide)
            return poutine.trace(replayed).get_trace(x, **_taken(self.model, self.guide, values))

    @property
    def banks(self) -> list[Bank]:
        """Parts that hold encodings of the training images."""
        return [part for part in self.modules() if isinstance(part, Bank)]

    def refresh(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Encodes training images anew for the parts that hold encodings of them; nothing happens where none does.

        Args:
            images: training images as in a data set, ``[N, *event_shape]``.
            generator: where one is given, as while training, a part may renew only as much as a step needs.
        """
        for bank in self.banks:
            bank.refresh(lambda rows: as_input(images[rows.to(images.device)]), len(images), generator)

    def latent(self, x: Tensor, **values: Any) -> tuple[Distribution, Distribution]:
        """q(z|x) at the latent site of images ``[batch, *event_shape]``, batch shape [batch], and p(z).

        p(z) is what the model's ``prior`` returns, or, if it has none, what the site is drawn from.

        Raises:
            UnsupportedError: there is not exactly one latent site, or the guide has auxiliary ones, so that q(z|x) is
                no single distribution.
        """
        guide = self._guide_trace(x, None, **values)
        auxiliary = [name for name, _ in _auxiliary_sites(guide)]
        latent = [name for name in latent_sites(guide) if name not in auxiliary]
        if len(latent) != 1:
            raise UnsupportedError(f"expected one latent site, got {latent}")
        if auxiliary:
            raise UnsupportedError(f"expected a guide without auxiliary sites, got {auxiliary}")
        q = _with_batch(len(x), guide.nodes[latent[0]]["fn"])
        if self._has_prior:
            return q, self.model.prior()  # type: ignore[operator]
        return q, self._model_trace(guide, x, **values).nodes[latent[0]]["fn"]

    def likelihood(self, x: Tensor, z: Tensor, **values: Any) -> Distribution:
        """p(x|z) at the observed site of images, when the latent site takes the values ``z``.

        Args:
            x: images, ``[batch, *event_shape]``.
            z: codes, ``[batch, *latent_shape]``.
            values: as in `forward`.

        Raises:
            UnsupportedError: there is not exactly one latent and one observed site.
        """
        with LocalParams(), SubstituteLatent(z):
            model = poutine.trace(self.model).get_trace(x, **_taken(self.model, self.guide, values))
        latent, observed = latent_sites(model), observed_sites(model)
        if (len(latent), len(observed)) != (1, 1):
            raise UnsupportedError(f"expected one latent and one observed site, got {latent} and {list(observed)}")
        return _with_batch(len(x), next(iter(observed.values()))["fn"])

    def generate(self, x: Tensor, **values: Any) -> poutine.Trace:
        """A trace of the model with every site drawn anew, for as many images as ``x`` has: z ~ p(z), x ~ p(x|z).

        So each z is an exact draw from the p(z|x) of its image. With one latent site, of a model that has a ``prior``,
        p(z) is what that returns, whatever the site is drawn from.
        """
        with LocalParams(), UnconditionMessenger():
            model = poutine.trace(self.model).get_trace(x, **_taken(self.model, self.guide, values))
            if len(latent_sites(model)) != 1 or not self._has_prior:
                return model
            prior = self.model.prior()  # type: ignore[operator]
            with SubstituteLatent(prior.sample((len(x),))):
                return poutine.trace(self.model).get_trace(x, **_taken(self.model, self.guide, values))

    @property
    def _has_prior(self) -> bool:
        return callable(getattr(self.model, "prior", None))

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Puts all modules in their mode for evaluation inside the block, and back in their own behind it."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

    def program(self, **values: Any) -> Callable[[Tensor], Any]:
        """The model with its values given, a Pyro program of images alone that leaves Pyro's store empty."""

        def model(x: Tensor) -> Any:
            with LocalParams():
                return self.model(x, **_taken(self.model, self.guide, values))

        return model

    def check(self, x: Tensor, **values: Any) -> "Checked":
        """Runs one batch with Pyro's validation on, so that a mistake shows where it was made.

        Raises:
            InputError: model and guide have other latent sites; a site lacks an entry per image, is drawn in a way that
                has no gradient, or is scaled differently by both halves.
            ValueError: Pyro's own complaint about a mismatch, a shape or a support.
        """
        with pyro.validation_enabled(True), torch.no_grad():
            guide, model = self.traces(x, **values)
            _check_same_sites(guide, model)
            check_model_guide_match(model, guide)
            for trace in (guide, model):
                trace.compute_log_prob()
        for name, site in [*_sample_sites(model), *_sample_sites(guide)]:
            _check_one_entry_per_image(name, site, len(x))
        for name, site in _sample_sites(guide):
            _check_reparameterized(name, site)
        latent = {name: (guide.nodes[name], p) for name, p in _sample_sites(model) if not p["is_observed"]}
        for name, (q, p) in latent.items():
            _check_scaled_alike(name, q["scale"], p["scale"])
        return Checked(
            noise_shapes={name: _noise_per_image(guide.nodes[name]["fn"], len(x)) for name in latent_sites(guide)},
            closed_form=latent_sites(guide) == latent_sites(model)
            and len(latent) == 1
            and all(closed_form_kl(q["fn"], p["fn"]) is not None for q, p in latent.values()),
            distortion_kind=_distortion_kind(model),
        )


class Checked(NamedTuple):
    """What a batch run in the open tells about a pair.

    Attributes:
        noise_shapes: shape of the noise of one image by latent site; None where noise cannot be passed in.
        closed_form: whether the rate is a closed form; otherwise, and where it depends on another site's draw, it is
            Monte Carlo.
        distortion_kind: what the distortion is: a cross-entropy where the likelihood gives the images no density.
    """

    noise_shapes: dict[str, torch.Size | None]
    closed_form: bool
    distortion_kind: str

    def told(self) -> dict[str, str]:
        """What distortion and rate are, as the results say it."""
        rate_kind = "closed form" if self.closed_form else "Monte Carlo"
        return {"rate_kind": rate_kind, "distortion_kind": self.distortion_kind}


def _terms(
    guide: poutine.Trace, model: poutine.Trace, divergence: Callable[[Distribution, Distribution, Tensor], Tensor]
) -> Terms:
    """Sums the traces of both programs up."""
    loss, distortion, rates = [], [], {}
    for name, site in _auxiliary_sites(guide):
        rates[name] = _per_image(site["fn"].log_prob(site["value"]))
        loss.append(site["scale"] * rates[name])
    for name, site in _told_rates(model):
        rates[name] = _per_image(site["value"])
    for name, site in _sample_sites(model):
        if site["is_observed"]:
            term = -_per_image(site["fn"].log_prob(site["value"]))
            if not site["infer"].get("is_auxiliary"):
                distortion.append(term)
        else:
            term = rates[name] = _per_image(divergence(guide.nodes[name]["fn"], site["fn"], site["value"]))
        loss.append(site["scale"] * term)
    none = torch.zeros_like(loss[0])
    return Terms(sum(loss, none), sum(distortion, none), rates)


def _sample_sites(trace: poutine.Trace) -> list[tuple[str, Site]]:
    """The sites that carry a density: sample sites, without the plates' own and the deterministic ones."""
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    ]


def _told_rates(model: poutine.Trace) -> list[tuple[str, Site]]:
    """Deterministic sites of which a model says that they are part of its rate."""
    return [
        (name.removeprefix(RATE), site)
        for name, site in model.nodes.items()
        if name.startswith(RATE) and site["infer"].get("_deterministic")
    ]


def _taken(program: nn.Module, partner: nn.Module, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a program names as arguments; β and those that its partner names where it takes any."""
    own = signature(program.forward).parameters
    named = set(own)
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in own.values()):
        named |= {"beta", *signature(partner.forward).parameters}
    return {name: value for name, value in values.items() if name in named}


def latent_sites(trace: poutine.Trace) -> list[str]:
    """Names of the latent sites, in the order in which they were drawn."""
    return [name for name, site in _sample_sites(trace) if not _is_observed(site)]


def observed_sites(model: poutine.Trace) -> dict[str, Site]:
    """The sites that make up the distortion; a ``pyro.factor`` is none of them."""
    return {
        name: site
        for name, site in _sample_sites(model)
        if _is_observed(site) and not site["infer"].get("is_auxiliary")
    }


def log_weight(guide: poutine.Trace, model: poutine.Trace) -> Tensor:
    """log p(x, z) − log q(z|x) at the draws of `Pair.traces`, ``[batch]``."""
    terms = _terms(guide, model, log_ratio)
    return -terms.distortion - terms.rate


def _is_observed(site: Site) -> bool:
    """Whether a site has data, also where `Pair.generate` has drawn them anew."""
    return site["is_observed"] or site["infer"].get("was_observed", False)


def _auxiliary_sites(guide: poutine.Trace) -> list[tuple[str, Site]]:
    """Latent sites of a guide that its model does not have."""
    return [
        (name, site)
        for name, site in _sample_sites(guide)
        if not site["is_observed"] and site["infer"].get("is_auxiliary")
    ]


def _check_same_sites(guide: poutine.Trace, model: poutine.Trace) -> None:
    auxiliary = {name for name, _ in _auxiliary_sites(guide)}
    latent, guided = set(latent_sites(model)), set(latent_sites(guide)) - auxiliary
    if latent != guided:
        raise InputError(
            f"guide: expected the latent sites of the model, {sorted(latent)}, got {sorted(guided)}; "
            "a model and a guide have to belong together"
        )


def _distortion_kind(model: poutine.Trace) -> str:
    observed = observed_sites(model).values()
    if not all(site["fn"].support.check(site["value"]).all() for site in observed):
        return "cross-entropy"
    discrete = any(site["fn"].support.is_discrete for site in observed)
    return "negative log-probability" if discrete else "negative log-density"


def _per_image(term: Tensor) -> Tensor:
    """Sums everything but the plate over images, which is the last batch dimension."""
    return term.flatten(0, -2).sum(0) if term.dim() > 1 else term


def _noise_per_image(q: Distribution, batch: int) -> torch.Size | None:
    shape = noise_shape(q)
    return shape[1:] if shape is not None and shape[:1] == (batch,) else None


def _check_one_entry_per_image(name: str, site: Site, batch: int) -> None:
    shape = site["fn"].batch_shape
    if shape[-1:] != (batch,):
        raise InputError(
            f"site '{name}': expected one entry per image, a batch shape that ends in {batch}, "
            f"got {list(shape)}; it may stand outside the plate over images"
        )


def _check_reparameterized(name: str, site: Site) -> None:
    if not site["fn"].has_rsample:
        raise InputError(
            f"site '{name}': expected a guide with reparameterized draws, which have a gradient, got "
            f"{_innermost(site['fn'])}, which has none"
        )


def _with_batch(batch: int, distribution: Distribution) -> Distribution:
    """The distribution, if there is one for each image and no more."""
    if distribution.batch_shape != (batch,):
        raise UnsupportedError(f"expected batch shape [{batch}], got {list(distribution.batch_shape)}")
    return distribution


def _innermost(q: Distribution) -> str:
    return _innermost(q.base_dist) if isinstance(q, Independent) else type(q).__name__


def _check_scaled_alike(name: str, guide_scale: float, model_scale: float) -> None:
    if guide_scale != model_scale:
        raise InputError(
            f"site '{name}': expected one scale in model and guide, got {model_scale} and {guide_scale}; "
            "both halves put it under poutine.scale(scale=beta)"
        )
