"""A model and the guide that belongs to it: images in, distortion and rate per image out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils._pytree import tree_map

from pyrovae.data import as_input
from pyrovae.errors import InputError, UnsupportedError
from pyrovae.estimators.likelihood import ImportanceWeighted, images_per_chunk, log_likelihood
from pyrovae.programs.checks import PairProperties, check_traces
from pyrovae.programs.distributions import kl, log_ratio, mean_of
from pyrovae.programs.handlers import LocalParams, Noise, SubstituteLatent
from pyrovae.programs.inputs import as_tensor, check_count, checked
from pyrovae.programs.origin import Origin
from pyrovae.programs.sites import auxiliary_sites, latent_sites, observed_sites
from pyrovae.programs.terms import Terms, log_weight, sum_terms
from pyrovae.system import tensor_file

if TYPE_CHECKING:
    import xarray as xr


@runtime_checkable
class Bank(Protocol):
    """A component that caches encodings of the training images, which have to be refreshed while the guide trains."""

    interval: int
    """Training steps between refreshes."""

    def refresh(self, images: Callable[[Tensor], Tensor], size: int, generator: torch.Generator | None = None) -> None:
        """Recomputes the encodings.

        Args:
            images: rows of the training set → their images.
            size: number of training images.
            generator: during training, draws the images that the next steps need; without it all are encoded.
        """


class Pair(nn.Module):
    """A Pyro model p(x, z) and a guide q(z|x), called as one module.

    The pair refers to no site by name. It runs the guide, replays the model and sums over the trace: observed sites
    make up the distortion D = −log p(x|z), latent sites the rate R = KL(q(z|x) ‖ p(z)). Each term enters the loss with
    its scale, so that under ``poutine.scale(scale=beta)`` the loss is D + β R.

    The KL of a site is a closed form if one is registered and guide and model sample the same sites in the same order:
    only then are the parents in p sampled before the site that the closed form integrates out. Otherwise it is
    estimated by log q − log p at the draw. Auxiliary sites of the guide add their log q.

    A model may add a term to R by a deterministic site whose name begins with "rate/"; its contribution to the loss is
    a separate ``pyro.factor``.

    Both programs are called as ``program(x, **values)`` with the values that their signatures name, and have one plate
    over images.

    Attributes:
        model, guide: the programs.
        origin: the settings that it was made from, and what it was trained on; None for a pair of other programs.

    Example:
        >>> import torch
        >>> from pyrovae.build import make_pair
        >>> from pyrovae.study import Run
        >>> pair = make_pair(Run(depth=1, width=8), event_shape=(1, 8, 8))
        >>> terms = pair(torch.rand(5, 1, 8, 8), beta=0.5)
        >>> torch.allclose(terms.loss, terms.distortion + 0.5 * terms.rate)
        True
    """

    def __init__(self, model: nn.Module, guide: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.guide = guide
        self.origin: Origin | None = None

    def __repr__(self) -> str:
        programs = f"{self.model!r}\n{self.guide!r}"
        if self.origin is None:
            return programs
        size = self.origin.train_images
        trained = f"trained on {size:,} images" if size else "not trained"
        return f"{programs}\nat {', '.join(f'{name} {value:g}' for name, value in self.weights.items())}, {trained}"

    def forward(self, x: Tensor, noise: Mapping[str, Tensor] | None = None, **values: float | Tensor) -> Terms:
        """Distortion, rate and loss of each image, to be differentiated; `terms` is for evaluation.

        Args:
            x: images, ``[batch, *event_shape]``, which are checked if there is no noise.
            noise: standard normal draws by latent site; by default Pyro samples.
            values: further arguments of the programs, such as β; each program gets those that its signature names. By
                default, β and γ are those that the pair was trained with.

        Raises:
            InputError: the images are of another type, shape or device, or outside the support of the likelihood.
        """
        if noise is None:
            x = self._checked(x)
        values = {**self.weights, **values}
        guide, model = self.traces(x, noise, **values)
        return sum_terms(guide, model, kl if latent_sites(guide) == latent_sites(model) else log_ratio)

    def log_weights(self, x: Tensor, particles: int, **values: Any) -> Tensor:
        """log p(x, z) − log q(z|x) at draws z ~ q(z|x): images ``[n, *event_shape]`` → ``[particles, n]``.

        With one latent and one observed site, the guide runs once per image, otherwise once per draw.
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
            return poutine.trace(self.guide).get_trace(x, **_accepted_kwargs(self.guide, self.model, values))

    def _model_trace(self, guide: poutine.Trace, x: Tensor, **values: float | Tensor) -> poutine.Trace:
        with LocalParams():
            replayed = poutine.replay(self.model, trace=guide)
            return poutine.trace(replayed).get_trace(x, **_accepted_kwargs(self.model, self.guide, values))

    @property
    def banks(self) -> list[Bank]:
        """The components that cache encodings of the training images."""
        return [module for module in self.modules() if isinstance(module, Bank)]

    def refresh(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Refreshes the cached encodings of the training images; does nothing if no component caches any.

        Args:
            images: training images as in a data set, ``[N, *event_shape]``.
            generator: during training, draws the images that the next steps need; without it all are encoded.
        """
        with self.evaluated():  # encodings neither depend on dropout nor change running statistics
            for bank in self.banks:
                bank.refresh(lambda rows: as_input(images[rows.to(images.device)]), len(images), generator)

    def latent(self, x: Tensor, **values: Any) -> tuple[Distribution, Distribution]:
        """q(z|x) at the latent site of images ``[batch, *event_shape]``, batch shape [batch], and p(z).

        p(z) is what the model's ``prior()`` returns or, without one, the distribution of its latent site.

        Raises:
            UnsupportedError: there is not exactly one latent site, or the guide has auxiliary sites, so that q(z|x) is
                not a single distribution.
        """
        guide = self._guide_trace(x, None, **values)
        auxiliary = [name for name, _ in auxiliary_sites(guide)]
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
        """p(x|z) at the observed site, given values ``z`` of the latent site.

        Args:
            x: images, ``[batch, *event_shape]``.
            z: latent codes, ``[batch, *latent_shape]``.
            values: as in `forward`.

        Raises:
            UnsupportedError: there is not exactly one latent and one observed site.
        """
        with LocalParams(), SubstituteLatent(z):
            model = poutine.trace(self.model).get_trace(x, **_accepted_kwargs(self.model, self.guide, values))
        latent, observed = latent_sites(model), observed_sites(model)
        if (len(latent), len(observed)) != (1, 1):
            raise UnsupportedError(f"expected one latent and one observed site, got {latent} and {list(observed)}")
        return _with_batch(len(x), next(iter(observed.values()))["fn"])

    @property
    def weights(self) -> dict[str, float]:
        """β, and γ if it had one of its own, that the pair was trained with; empty for a pair of other programs."""
        given = {} if self.origin is None else {"beta": self.origin.run.beta, "gamma": self.origin.run.gamma}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def event_shape(self) -> torch.Size:
        """Shape of an image.

        Raises:
            InputError: it is unknown, because the pair was not made from settings.
        """
        shape = self._known_shape
        if shape is None:
            raise InputError("expected a pair that knows the shape of an image, as those of fit and make_pair do")
        return shape

    def encode(self, x: Tensor) -> Distribution:
        """q(z|x) of images ``[n, *event_shape]``, with batch shape [n]; errors as for `forward`.

        Raises:
            UnsupportedError: z has several levels.
        """
        return self.latent(self._checked(x))[0]

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) at codes ``[n, latent_size]``, with batch shape [n]: ``.mean`` are pictures, ``.sample()`` draws.

        Raises:
            InputError: the codes have another size.
            UnsupportedError: the model has several latent or observed sites.
        """
        z = as_tensor("z", z, next(self.parameters()))
        shape = getattr(getattr(self.model, "prior", None), "event_shape", z.shape[-1:])
        if z.shape[-len(shape) :] != shape:
            raise InputError(f"z: expected [n, {', '.join(map(str, shape))}], got {list(z.shape)}")
        if callable(decode := getattr(self.model, "decode", None)):
            return decode(z)
        return self.likelihood(z.new_zeros(len(z), *self.event_shape), z)

    @torch.no_grad()
    def generate(self, n: int) -> Tensor:
        """Images of the model, ``[n, *event_shape]``: E[x|z] at draws z ~ p(z), and at an offset of 1 if x has one.

        Draws come from torch's global generator, which ``torch.manual_seed`` seeds.

        Raises:
            InputError: n is no integer, or below 1.

        Example:
            >>> from pyrovae import Run, make_pair
            >>> make_pair(Run(depth=1, width=8), event_shape=torch.Size([1, 8, 8])).generate(16).shape
            torch.Size([16, 1, 8, 8])
        """
        check_count("n", n)
        like = next(self.parameters())
        with self.evaluated(), pyro.validation_enabled(False):
            return _expected(self.simulate(like.new_ones(n, *self.event_shape)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Images ``[n, *event_shape]`` as the model sees them: E[x|z] at draws z ~ q(z|x); errors as for `forward`."""
        x = self._checked(x)
        with self.evaluated(), pyro.validation_enabled(False):
            return torch.cat([_expected(self.traces(part)[1]) for part in self._parts(x)])

    @torch.no_grad()
    def terms(self, x: Tensor, samples: int = 1, **values: float | Tensor) -> Terms:
        """Distortion, rate and loss of each image, in nats per image, without gradients; errors as for `forward`.

        Args:
            x: images, ``[n, *event_shape]``.
            samples: draws of z per image, over which each of them is a mean.
            values: as in `forward`: by default, β and γ are those that the pair was trained with.

        Example:
            >>> from pyrovae import Run, make_pair
            >>> pair = make_pair(Run(beta=4, depth=1, width=8), event_shape=torch.Size([1, 8, 8]))
            >>> terms = pair.terms(torch.rand(5, 1, 8, 8))
            >>> torch.allclose(terms.loss, terms.distortion + 4 * terms.rate)
            True
        """
        check_count("samples", samples)
        x = self._checked(x)
        both = ((self.model, self.guide), (self.guide, self.model))
        taken = [_accepted_kwargs(program, partner, values) for program, partner in both]
        if unknown := values.keys() - {"beta", "gamma", "index"}.union(*taken):
            raise InputError(
                f"unknown argument {min(unknown)!r}; valid: samples, beta, gamma, index, and what the programs name"
            )
        with self.evaluated(), pyro.validation_enabled(False):
            parts = [self._mean_terms(part, samples, values) for part in self._parts(x)]
        return tree_map(lambda *each: torch.cat(each), *parts)

    def _mean_terms(self, x: Tensor, samples: int, values: Mapping[str, float | Tensor]) -> Terms:
        """The terms of images, means over draws of z."""
        draws = [self(x, {}, **values) for _ in range(samples)]
        return tree_map(lambda *each: torch.stack(each).mean(0), *draws)

    def log_likelihood(self, x: Tensor, particles: int = 1000) -> ImportanceWeighted:
        """Importance-weighted bounds of log p(x) in nats per image, with k̂; errors as for `forward`.

        Example:
            >>> from pyrovae import Run, make_pair
            >>> pair = make_pair(Run(depth=1, width=8), event_shape=torch.Size([1, 8, 8]))
            >>> found = pair.log_likelihood(torch.rand(5, 1, 8, 8), particles=100)
            >>> found.bound.shape, found.estimate.kind
            (torch.Size([5]), 'lower bound')
        """
        check_count("particles", particles)
        x = self._checked(x)
        with self.evaluated(), pyro.validation_enabled(False):
            return log_likelihood(self.log_weights, x, particles)

    def to_inference_data(self, x: Tensor, **options: Any) -> "xr.DataTree":
        """Draws on images as ArviZ's data tree: options as of `pyrovae.analysis.inference_data.inference_data`."""
        # Imports go downwards; what interprets pairs is above them.
        module = import_module("pyrovae.analysis.inference_data")
        return module.inference_data(self, self._checked(x), **options)

    def save(self, file: str | Path) -> None:
        """Writes weights, settings and provenance to a file that `pyrovae.load` reads; nothing is pickled.

        Raises:
            InputError: the pair was not made from settings, by `pyrovae.fit`, `make_pair` or ``results.pair``.
            OSError: the file cannot be written; an earlier file of this name is unchanged.
        """
        if self.origin is None:
            raise InputError("expected a pair made from settings, as by fit or make_pair, got one of other programs")
        facts = {
            "run": self.origin.run.model_dump(mode="json"),
            "event_shape": list(self.origin.event_shape),
            "train_images": self.origin.train_images,
            "provenance": dict(self.origin.provenance),
        }
        tensor_file.save(Path(file), {"pair": self.state_dict()}, facts)

    @property
    def _known_shape(self) -> torch.Size | None:
        if self.origin is not None:
            return self.origin.event_shape
        return getattr(getattr(self.model, "likelihood", None), "event_shape", None)

    def _checked(self, x: Tensor) -> Tensor:
        """Images as a program takes them. Raises InputError."""
        support = getattr(getattr(self.model, "likelihood", None), "support", None)
        return checked(x, self._known_shape, next(self.parameters()), support)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(images_per_chunk(x))

    def simulate(self, x: Tensor, **values: Any) -> poutine.Trace:
        """A trace of the model with all sites sampled, z ~ p(z) and x ~ p(x|z), for as many images as ``x`` has.

        Each z is then an exact draw from p(z|x) of its image. If the model has one latent site and a ``prior``, p(z) is
        what ``prior()`` returns.
        """
        with LocalParams(), UnconditionMessenger():
            model = poutine.trace(self.model).get_trace(x, **_accepted_kwargs(self.model, self.guide, values))
            if len(latent_sites(model)) != 1 or not self._has_prior:
                return model
            prior = self.model.prior()  # type: ignore[operator]
            with SubstituteLatent(prior.sample((len(x),))):
                return poutine.trace(self.model).get_trace(x, **_accepted_kwargs(self.model, self.guide, values))

    @property
    def _has_prior(self) -> bool:
        return callable(getattr(self.model, "prior", None))

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Puts all modules into evaluation mode inside the block, and restores their modes afterwards."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

    def program(self, **values: Any) -> Callable[[Tensor], Any]:
        """The model with ``values`` bound: a Pyro program of images alone, which leaves the param store empty."""

        def model(x: Tensor) -> Any:
            with LocalParams():
                return self.model(x, **_accepted_kwargs(self.model, self.guide, values))

        return model

    def check(self, x: Tensor, **values: Any) -> PairProperties:
        """Properties of the pair, from one forward pass under Pyro's validation.

        Raises:
            InputError: model and guide have different latent sites; a site lacks one entry per image, is not
                reparameterized, or has different scales in model and guide.
            ValueError: Pyro found a mismatch, a wrong shape or a value outside a support.
        """
        with pyro.validation_enabled(True), torch.no_grad():
            return check_traces(*self.traces(x, **values), len(x))


def _expected(trace: poutine.Trace) -> Tensor:
    """E[x|z] at the observed site of a trace, or the draw where it has no formula."""
    observed = list(observed_sites(trace).values())
    if len(observed) != 1:
        raise UnsupportedError(f"expected one observed site, got {[site['name'] for site in observed]}")
    mean = mean_of(observed[0]["fn"])
    return observed[0]["fn"].sample() if mean is None else mean


def _accepted_kwargs(program: nn.Module, partner: nn.Module, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a program's signature names; with ``**kwargs``, also β and those that its partner names."""
    parameters = signature(program.forward).parameters
    names = set(parameters)
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        names |= {"beta", *signature(partner.forward).parameters}
    return {name: value for name, value in values.items() if name in names}


def _with_batch(batch: int, distribution: Distribution) -> Distribution:
    """The distribution, if it has one entry per image."""
    if distribution.batch_shape != (batch,):
        raise UnsupportedError(f"expected batch shape [{batch}], got {list(distribution.batch_shape)}")
    return distribution
