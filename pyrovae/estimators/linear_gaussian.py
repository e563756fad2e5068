"""Closed forms for the linear-Gaussian pair, against which the estimators are tested."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """Data x ~ N(0, C), the model z ~ N(0, I), x|z ~ N(W z, σ² I), and the guide that minimises D + β R.

    The guide is q(z|x) = N(A x, S) with S = (I + WᵀW / (σ²β))⁻¹ and A = S Wᵀ / (σ²β); at β = 1 it is the exact
    posterior. The inference marginal of the population is q(z) = N(0, V) with V = A C Aᵀ + S. All values are those of
    the population, in nats per image, computed in float64.

    Args:
        covariance: C, ``[D, D]``.
        weight: W, ``[D, d]``.
        scale: σ.
        beta: β.

    Raises:
        ValueError: a shape does not match, C is not a covariance matrix, or σ or β is not positive.

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
            raise ValueError(f"covariance: expected shape {[rows, rows]}, got {list(self.covariance.shape)}")
        if not (self.scale > 0 and self.beta > 0):
            raise ValueError(f"expected positive scale and beta, got {self.scale} and {self.beta}")
        object.__setattr__(self, "covariance", self.covariance.double())
        smallest = torch.linalg.eigvalsh(self.covariance)[0]
        if not (torch.allclose(self.covariance, self.covariance.T) and smallest > -1e-9 * self.covariance.abs().max()):
            raise ValueError("covariance: expected a symmetric positive semidefinite matrix")
        object.__setattr__(self, "weight", self.weight.double())

    @classmethod
    def best(cls, covariance: Tensor, latent_size: int, scale: float = 1.0, beta: float = 1.0) -> Self:
        """The pair whose decoder minimises D + β R as well.

        W = U_d (Λ_d − σ²β I)₊^½ with the d largest eigenvalues Λ_d of C and their eigenvectors U_d: probabilistic PCA
        with fixed noise σ²β (Tipping & Bishop 1999, Probabilistic principal component analysis).
        """
        variance, axes = torch.linalg.eigh(covariance.double())
        length = (variance[-latent_size:] - scale**2 * beta).clamp(min=0).sqrt()
        return cls(covariance, axes[:, -latent_size:] * length, scale, beta)

    @property
    def posterior_covariance(self) -> Tensor:
        """S, ``[d, d]``."""
        W = self.weight
        return torch.linalg.inv(torch.eye(W.shape[1], dtype=W.dtype) + W.T @ W / (self.scale**2 * self.beta))

    @property
    def encoder(self) -> Tensor:
        """A, ``[d, D]``."""
        return self.posterior_covariance @ self.weight.T / (self.scale**2 * self.beta)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """The optimal guide q(z|x) of vectors ``[n, D]``, batch shape [n]."""
        return MultivariateNormal(x.double() @ self.encoder.T, self.posterior_covariance.expand(len(x), -1, -1))

    @property
    def marginal(self) -> MultivariateNormal:
        """The inference marginal q(z) of the population."""
        A = self.encoder
        V = A @ self.covariance @ A.T + self.posterior_covariance
        return MultivariateNormal(V.new_zeros(len(V)), V)

    @property
    def distortion(self) -> float:
        """D = E_x E_q[−log p(x|z)] = tr[(I − WA) C (I − WA)ᵀ + W S Wᵀ] / 2σ² + (D/2) log 2πσ²."""
        W, C = self.weight, self.covariance
        residual = torch.eye(len(C), dtype=C.dtype) - W @ self.encoder
        squares = (residual @ C @ residual.T + W @ self.posterior_covariance @ W.T).trace()
        return float(squares / (2 * self.scale**2) + len(C) / 2 * math.log(2 * math.pi * self.scale**2))

    @property
    def rate(self) -> float:
        """R = E_x KL(q(z|x) ‖ p(z)) = [tr(A C Aᵀ) + tr S − d − log det S] / 2."""
        V, S = self.marginal.covariance_matrix, self.posterior_covariance
        return float((V.trace() - len(S) - S.logdet()) / 2)

    @property
    def mutual_information(self) -> float:
        """I = [log det V − log det S] / 2."""
        return float((self.marginal.covariance_matrix.logdet() - self.posterior_covariance.logdet()) / 2)

    @property
    def prior_gap(self) -> float:
        """G = KL(N(0, V) ‖ N(0, I)) = [tr V − d − log det V] / 2."""
        V = self.marginal.covariance_matrix
        return float((V.trace() - len(V) - V.logdet()) / 2)

    @property
    def log_likelihood(self) -> float:
        """E_x log p(x) = −[D log 2π + log det M + tr(M⁻¹ C)] / 2 with M = W Wᵀ + σ² I, for any β."""
        C, W = self.covariance, self.weight
        M = W @ W.T + self.scale**2 * torch.eye(len(C), dtype=C.dtype)
        return float(-(len(C) * math.log(2 * math.pi) + M.logdet() + torch.linalg.solve(M, C).trace()) / 2)
