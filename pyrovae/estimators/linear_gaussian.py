"""Closed forms for the linear-Gaussian pair, against which the estimators are tested."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae.errors import InputError

#: Largest relative asymmetry and negative eigenvalue of a covariance, which may have been computed in float32.
ROUNDING = 1e-6


class _Axes(NamedTuple):
    """W = U diag(s) Vᵀ with U ``[D, D]`` and V ``[d, d]``; s, padded with zeros, ``[D]`` and ``[d]``."""

    U: Tensor
    s_x: Tensor
    s_z: Tensor
    V: Tensor


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """Data x ~ N(0, C), the model z ~ N(0, I), x|z ~ N(W z, σ² I), and the guide that minimises D + β R.

    The guide is q(z|x) = N(A x, S) with S = (I + WᵀW / (σ²β))⁻¹ and A = S Wᵀ / (σ²β); at β = 1 it is the exact
    posterior. The inference marginal of the population is q(z) = N(0, V) with V = A C Aᵀ + S. All values are those of
    the population, in nats per image, computed in float64.

    All values come from the singular values of W and from square roots of the covariances, because a matrix such as
    W Wᵀ + σ² I has lost σ at σ = 1e-8.

    Args:
        covariance: C, ``[D, D]``.
        weight: W, ``[D, d]``.
        scale: σ.
        beta: β.

    Raises:
        InputError: a shape does not match, C is not a covariance matrix, or σ or β is not positive.

    Example:
        >>> import torch
        >>> pair = LinearGaussian(torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[1.5], [0.0]]), scale=1.0)
        >>> abs(pair.rate - pair.mutual_information - pair.prior_gap) < 1e-9
        True
        >>> abs(pair.log_likelihood + pair.distortion + pair.rate) < 1e-9  # the bound is tight at β = 1
        True
    """

    covariance: Tensor
    weight: Tensor
    scale: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        rows = self.weight.shape[0]
        if self.covariance.shape != (rows, rows):
            raise InputError(f"covariance: expected shape {[rows, rows]}, got {list(self.covariance.shape)}")
        if not (self.scale > 0 and self.beta > 0):
            raise InputError(f"expected positive scale and beta, got {self.scale} and {self.beta}")
        object.__setattr__(self, "covariance", self.covariance.double())
        skew, smallest = (self.covariance - self.covariance.T).abs().max(), torch.linalg.eigvalsh(self.covariance)[0]
        if not max(skew, -smallest) <= ROUNDING * self.covariance.abs().max():
            raise InputError("covariance: expected a symmetric positive semidefinite matrix")
        object.__setattr__(self, "weight", self.weight.double())

    @classmethod
    def best(cls, covariance: Tensor, latent_size: int, scale: float = 1.0, beta: float = 1.0) -> Self:
        """The pair whose decoder minimises D + β R as well.

        W = U_d (Λ_d − σ²β I)₊^½ with the d largest eigenvalues Λ_d of C and their eigenvectors U_d: probabilistic PCA
        with fixed noise σ²β (Tipping & Bishop 1999, Probabilistic principal component analysis). Where d exceeds D,
        the other columns of W are zero.

        Raises:
            InputError: d is below 1, or as the class.
        """
        if latent_size < 1:
            raise InputError(f"latent_size: expected at least 1, got {latent_size}")
        variance, axes = torch.linalg.eigh(covariance.double())
        length = (variance[-latent_size:] - scale**2 * beta).clamp(min=0).sqrt()
        weight = axes[:, -latent_size:] * length
        return cls(covariance, torch.nn.functional.pad(weight, (0, latent_size - weight.shape[1])), scale, beta)

    @classmethod
    def at_rate(cls, covariance: Tensor, latent_size: int, scale: float, rate: float) -> Self:
        """The pair of `best` at the β at which its rate is R.

        log σ²β = max_k (Σ_{i≤k} log λ_i − 2R) / k over the d largest eigenvalues λ of C in descending order, because
        R = Σ_i max(0, log λ_i − log σ²β) / 2 (reverse water-filling; Cover & Thomas 2006, §10.3.3).

        Raises:
            InputError: as `best`, or if R is so large that β would underflow.

        Example:
            >>> import torch
            >>> pair = LinearGaussian.at_rate(torch.diag(torch.tensor([4.0, 1.0])), 2, scale=1.0, rate=0.5)
            >>> round(pair.rate, 6), round(pair.beta, 4)
            (0.5, 1.4715)
        """
        logs = torch.linalg.eigvalsh(covariance.double()).flip(0)[:latent_size].clamp(min=0).log()
        levels = (logs.cumsum(0) - 2 * rate) / torch.arange(1, len(logs) + 1)
        return cls.best(covariance, latent_size, scale, float(levels.max().exp()) / scale**2)

    @property
    def posterior_covariance(self) -> Tensor:
        """S, ``[d, d]``."""
        return self._posterior_root.T @ self._posterior_root

    @property
    def encoder(self) -> Tensor:
        """A = V diag(s / (s² + σ²β)) Uᵀ, ``[d, D]``."""
        U, _, s, V = self._axes
        shared = min(len(U), len(V))
        gain = s[:shared] / (s[:shared].square() + self._noise)
        return V[:, :shared] * gain @ U[:, :shared].T

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """The optimal guide q(z|x) of vectors ``[n, D]``, batch shape [n]."""
        return MultivariateNormal(x.double() @ self.encoder.T, scale_tril=_lower(self._posterior_root))

    @property
    def marginal(self) -> MultivariateNormal:
        """The inference marginal q(z) of the population."""
        return MultivariateNormal(self.weight.new_zeros(self.weight.shape[1]), scale_tril=_lower(self._marginal_root))

    @property
    def distortion(self) -> float:
        """D = E_x E_q[−log p(x|z)] = tr[(I − WA) C (I − WA)ᵀ + W S Wᵀ] / 2σ² + (D/2) log 2πσ²."""
        U, s, _, _ = self._axes
        # I − WA = U diag(σ²β / (s² + σ²β)) Uᵀ, divided by σ here as well as W S^½.
        residual = self._root @ U * (self.scale * self.beta / (s.square() + self._noise))
        blur = self._posterior_root @ self.weight.T / self.scale
        squares = residual.square().sum() + blur.square().sum()
        return float(squares / 2 + len(U) * (math.log(2 * math.pi) / 2 + math.log(self.scale)))

    @property
    def rate(self) -> float:
        """R = E_x KL(q(z|x) ‖ p(z)) = [tr V − d − log det S] / 2."""
        return self._excess + self._narrowing

    @property
    def mutual_information(self) -> float:
        """I = [log det V − log det S] / 2."""
        return self._widening + self._narrowing

    @property
    def prior_gap(self) -> float:
        """G = KL(N(0, V) ‖ N(0, I)) = [tr V − d − log det V] / 2."""
        return self._excess - self._widening

    @property
    def log_likelihood(self) -> float:
        """E_x log p(x) = −[D log 2π + log det M + tr(M⁻¹ C)] / 2 with M = W Wᵀ + σ² I, for any β."""
        U, s, _, _ = self._axes
        scale = torch.hypot(s, s.new_tensor(self.scale))
        squares = (self._root @ U / scale).square().sum()
        return float(-(len(U) * math.log(2 * math.pi) + squares) / 2 - scale.log().sum())

    @property
    def _noise(self) -> float:
        """σ²β."""
        return self.scale**2 * self.beta

    @cached_property
    def _axes(self) -> _Axes:
        U, s, Vh = torch.linalg.svd(self.weight)
        s_x, s_z = (torch.nn.functional.pad(s, (0, size - len(s))) for size in self.weight.shape)
        return _Axes(U, s_x, s_z, Vh.T)

    @cached_property
    def _root(self) -> Tensor:
        """C^½, ``[D, D]``."""
        variance, axes = torch.linalg.eigh(self.covariance)
        return (axes * variance.clamp(min=0).sqrt()).T

    @cached_property
    def _posterior_root(self) -> Tensor:
        """S^½ = diag(1 + s² / σ²β)^−½ Vᵀ, ``[d, d]``."""
        _, _, s, V = self._axes
        return (V * (1 + s.square() / self._noise).rsqrt()).T

    @cached_property
    def _marginal_root(self) -> Tensor:
        """V^½, ``[D + d, d]``."""
        return torch.cat([self._root @ self.encoder.T, self._posterior_root])

    @property
    def _narrowing(self) -> float:
        """−log det S / 2."""
        return float(torch.log1p(self._axes.s_z.square() / self._noise).sum()) / 2

    @property
    def _widening(self) -> float:
        """log det V / 2."""
        return float(_lower(self._marginal_root).diagonal().log().sum())

    @property
    def _excess(self) -> float:
        """(tr V − d) / 2."""
        return float(self._marginal_root.square().sum() - self.weight.shape[1]) / 2


def _lower(root: Tensor) -> Tensor:
    """The lower triangular L with L Lᵀ = rootᵀ root and a positive diagonal."""
    L = torch.linalg.qr(root)[1].T
    return L * L.diagonal().sign()
