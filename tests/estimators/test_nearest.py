"""Nearest training points, compared with differences in exact arithmetic."""

import math

import pytest
import torch
from torch import Tensor

from pyrovae.estimators import nearest_point


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exhaustive(points: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and row of the nearest training point by differences in float64, the first where several are nearest."""
    squares = (points.double().unsqueeze(1) - training.double()).square().sum(-1)
    return squares.amin(1).sqrt(), (squares == squares.amin(1, keepdim=True)).int().argmax(1)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e6])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_nearest_point_is_exact_far_from_the_origin(shift: float, size: float) -> None:
    training = shift + size * torch.randn(500, 20, generator=seeded())
    points = shift + size * torch.randn(200, 20, generator=seeded(1))
    distance, row = exhaustive(points, training)
    found = nearest_point(points, training)
    assert torch.equal(found.row, row)
    torch.testing.assert_close(found.distance, distance.float())


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6])
def test_nearest_of_near_copies_is_exact(gap: float) -> None:
    originals = torch.rand(50, 784, generator=seeded())
    training = (originals + gap * torch.rand(40, 50, 784, generator=seeded(1))).flatten(0, 1)
    distance, row = exhaustive(originals, training)
    found = nearest_point(originals, training)
    assert torch.equal(found.row, row)
    torch.testing.assert_close(found.distance, distance.float())


def test_first_of_equal_training_points_is_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrovae.estimators.nearest.CHUNK_ROWS", 7)
    monkeypatch.setattr("pyrovae.estimators.nearest.CHUNK_COLUMNS", 11)
    images = torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8, generator=seeded())
    training = images.repeat(6, 1, 1, 1)
    found = nearest_point(images, training)
    assert found.row.tolist() == list(range(10))
    assert found.distance.tolist() == [0] * 10
    others = nearest_point(training, training, own=torch.arange(60))
    assert others.row.tolist() == [*range(10, 20), *(list(range(10)) * 5)]
    assert others.distance.tolist() == [0] * 60


def test_two_points_are_each_others_nearest() -> None:
    pair = torch.tensor([[1e4, 0.0], [1e4, 1e-3]])
    found = nearest_point(pair, pair, own=torch.arange(2))
    assert found.row.tolist() == [1, 0]
    assert found.distance.tolist() == pytest.approx([1e-3, 1e-3])


def test_distance_is_nan_without_another_finite_point() -> None:
    points = torch.zeros(4, 3)
    points[1, 0], points[2, 2] = math.nan, math.inf
    found = nearest_point(points, torch.ones(5, 3))
    assert found.distance.isnan().tolist() == [False, True, True, False]
    assert nearest_point(torch.ones(1, 3), torch.ones(1, 3), own=torch.arange(1)).distance.isnan()
