"""The flow matching prior."""

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import linear

from pyrovae.models.priors.prior import Prior
from pyrovae.networks import Count

#: Pairs of noise and time per code in the loss, and frequencies by which the network sees the time.
PAIRS, FREQUENCIES = 4, 3
#: Initial scale of the weights for z, relative to torch's, so that the network can follow fine structure.
FINE = 4


class FlowMatching(Prior):
    """The end of a flow that starts at N(0, I), with a velocity v fitted by regression (Lipman et al. 2023).

        dz/dt = v(z, t),  z(0) ~ N(0, I),  log p(z(1)) = log N(z(0); 0, I) − ∫ div v(z(t), t) dt

    This is how latent diffusion models its codes. The velocity is fitted to E[z − ε | (1−t) ε + t z] for codes z, noise
    ε and uniform t. That is no bound on the likelihood, from which an encoder could learn, so this prior is only fitted
    after training. Normally distributed codes of the same mean and covariance have a velocity in closed form. The prior
    adds to it a network with two hidden layers, whose divergence has a closed form, too. The equation is solved by the
    Runge-Kutta method of fourth order, in equal steps.

    Args:
        latent_size: number of latent dimensions d.
        hidden: width of the hidden layers.
        solver_steps: steps from t = 0 to 1.

    Shapes: a distribution with event shape ``[latent_size]``.

    Source: Lipman et al. 2023, Flow matching for generative modeling, ICLR, eq. 23 with σ_min = 0.

    Example:
        >>> prior = FlowMatching(3)
        >>> prior().sample().shape, prior().log_prob(torch.zeros(5, 3)).shape
        (torch.Size([3]), torch.Size([5]))
    """

    loc: Tensor
    scale_tril: Tensor
    frequencies: Tensor

    def __init__(self, latent_size: int, hidden: Count = 128, solver_steps: Count = 16) -> None:
        super().__init__(latent_size)
        self.solver_steps = solver_steps
        self.first = nn.Linear(latent_size + 2 * FREQUENCIES, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, latent_size)
        with torch.no_grad():
            self.first.weight[:, :latent_size] *= FINE
        self.register_buffer("loc", torch.zeros(latent_size))
        self.register_buffer("scale_tril", torch.eye(latent_size))
        self.register_buffer("frequencies", math.pi * torch.arange(1, FREQUENCIES + 1), persistent=False)

    @torch.no_grad()
    def start_at(self, z: Tensor) -> None:
        """Sets mean and covariance of the codes to those of points ``[n, latent_size]``."""
        covariance = torch.atleast_2d(z.T.cov())
        covariance.diagonal().mul_(1 + 1e-6)
        self.loc.copy_(z.mean(0))
        self.scale_tril.copy_(torch.linalg.cholesky_ex(covariance).L)

    def fit_loss(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """The mean squared error of the velocity, from some noise and times for each of the codes ``[n, latent_size]``.

        Args:
            z: draws from q(z).
            generator: for noise and times, on the CPU.
        """
        z = self.affine(z).inv(z).repeat(PAIRS, 1)
        noise = torch.randn(z.shape, generator=generator).to(z)
        time = torch.rand(len(z), 1, generator=generator).to(z)
        velocity, _ = self.velocity((1 - time) * noise + time * z, time)
        return (velocity - (z - noise)).square().sum(-1).mean()

    def affine(self, like: Tensor) -> dist.transforms.Transform:
        """The map from standardised codes to codes, in the precision of a tensor."""
        return dist.transforms.LowerCholeskyAffine(self.loc.to(like), self.scale_tril.to(like))

    def velocity(self, z: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """v(z, t) ``[..., d]`` and its divergence ``[...]``, at standardised z and times ``[..., 1]``.

        Codes from N(0, I) have v = (2t−1) / ((1−t)² + t²) z. With weights W and derivatives a of the activations, the
        network has the Jacobian W₃ diag(a₂) W₂ diag(a₁) W₁, whose trace is a₂ᵀ (W₂ ∘ (W₁ W₃)ᵀ) a₁.
        """
        angle = time * self.frequencies.to(time)
        seen = torch.cat([z, angle.cos().expand(*z.shape[:-1], -1), angle.sin().expand(*z.shape[:-1], -1)], -1)
        first, slope_1 = _silu(_apply(self.first, seen))
        second, slope_2 = _silu(_apply(self.second, first))
        inner = self.first.weight[:, : z.shape[-1]] @ self.last.weight
        weights = (self.second.weight * inner.T).to(z)
        normal = (2 * time - 1) / ((1 - time).square() + time.square())
        divergence = z.shape[-1] * normal.squeeze(-1) + ((slope_2 @ weights) * slope_1).sum(-1)
        return normal * z + _apply(self.last, second), divergence

    def solver_error(self, z: Tensor) -> Tensor:
        """The error of log p(z) in nats, from its change if the solver takes twice as many steps."""
        p = FlowMatchingDistribution(self)
        return (p.log_prob(z) - p.log_prob(z, 2 * self.solver_steps)).abs()

    def forward(self) -> dist.Distribution:
        return FlowMatchingDistribution(self)


class FlowMatchingDistribution(TorchDistribution):
    """The distribution at the end of the flow; its density has the precision of its argument."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False
    support = constraints.real_vector

    def __init__(self, flow: FlowMatching, batch_shape: torch.Size = torch.Size()) -> None:
        self.flow = flow
        super().__init__(batch_shape, flow.event_shape, validate_args=False)

    def log_prob(self, value: Tensor, steps: int | None = None) -> Tensor:
        z = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape))
        affine = self.flow.affine(z)
        z, divergence = self._solved(affine.inv(z), steps or self.flow.solver_steps, start=1.0)
        standard = dist.Normal(torch.zeros_like(z), 1.0).to_event(1)
        return standard.log_prob(z) + divergence - affine.log_abs_det_jacobian(z, z)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            loc = self.flow.loc
            z = torch.randn(*sample_shape, *self.batch_shape, *self.event_shape, dtype=loc.dtype, device=loc.device)
            z, _ = self._solved(z, self.flow.solver_steps, start=0.0)
            return self.flow.affine(z)(z)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "FlowMatchingDistribution":
        return FlowMatchingDistribution(self.flow, torch.Size(batch_shape))

    def _solved(self, z: Tensor, steps: int, start: float) -> tuple[Tensor, Tensor]:
        """z at the other end of the flow, and the integral of the divergence on the way there, by Runge-Kutta."""
        step = (1 - 2 * start) / steps
        total = torch.zeros_like(z[..., 0])
        for number in range(steps):
            time = z.new_tensor([start + number * step])
            v1, d1 = self.flow.velocity(z, time)
            v2, d2 = self.flow.velocity(z + step / 2 * v1, time + step / 2)
            v3, d3 = self.flow.velocity(z + step / 2 * v2, time + step / 2)
            v4, d4 = self.flow.velocity(z + step * v3, time + step)
            z = z + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
            total = total + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        return z, total


def _apply(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in the precision of its input."""
    return linear(x, layer.weight.to(x), layer.bias.to(x))


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU and its derivative."""
    gate = x.sigmoid()
    return x * gate, gate * (1 + x * (1 - gate))
