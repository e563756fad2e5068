"""The effective rank of posterior means, where it is known."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pyrovae.measures.effective_rank import measure
from pyrovae.measures.encodings import Encodings


def effective_rank(means: Tensor) -> float:
    q = Independent(Normal(means.double(), torch.ones_like(means, dtype=torch.float64), validate_args=False), 1)
    run: Any = type("Run", (), {"encodings": Encodings(q, q, q)})
    return float(measure(run).values["effective_rank"])


@pytest.mark.parametrize("variances", [[1.0], [1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [4.0, 1.0]])
def test_rank_is_the_exponential_entropy_of_the_variances(variances: list[float]) -> None:
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * len(variances)).reshape(-1, len(variances))
    rotation, _ = torch.linalg.qr(
        torch.randn(len(variances), len(variances), generator=torch.Generator().manual_seed(0))
    )
    shares = torch.tensor(variances).double() / sum(variances)
    expected = torch.special.entr(shares).sum().exp().item()
    assert effective_rank(corners * torch.tensor(variances).sqrt() @ rotation + 7) == pytest.approx(expected, rel=1e-5)


def test_rank_of_codes_that_do_not_move_is_missing() -> None:
    for means in (torch.zeros(5, 3), torch.full((5, 3), torch.inf)):
        assert effective_rank(means) != effective_rank(means)
