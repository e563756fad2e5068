"""Tetrominoes: rendering, sampling and splits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pyrovae.data import splits, tetrominoes


def test_rendering_matches_the_reference_images() -> None:
    reference = np.load(Path(__file__).parent / "tetrominoes_reference.npz")
    images = tetrominoes.render(torch.tensor(reference["factors"]).float())
    error = (images - torch.tensor(reference["images"]) / 255).abs()
    assert error.mean() <= 0.001
    assert error.max() <= 0.08


def test_small_image_is_the_mean_of_pixels() -> None:
    factors = tetrominoes.sample_factors()[::4099]
    small, large = tetrominoes.render(factors, 16), tetrominoes.render(factors)
    torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(large, 2), rtol=0, atol=2e-5)


def test_covered_area_is_four_cells_at_any_angle() -> None:
    factors = torch.tensor([[angle, 0.0, 3.3, 15.2, 16.7] for angle in range(0, 337, 7)])
    area = tetrominoes.render(factors)[:, 0].sum((1, 2))
    torch.testing.assert_close(area, torch.full_like(area, 4 * 3.3**2), rtol=1e-4, atol=0)


def test_sampling_puts_one_draw_in_each_cell() -> None:
    factors = tetrominoes.source().factors
    assert factors is not None
    cells = (factors.double() * torch.tensor(tetrominoes.BINS)).long()
    assert len(cells.unique(dim=0)) >= 163_840 - 8  # float32 may round a draw onto the next cell's edge


def test_checkerboard_trains_on_half_of_the_cells() -> None:
    source = tetrominoes.source()
    assert source.factors is not None
    mask = splits.checkerboard(source)
    # Only the middle of the five scale bins, 32,768 draws, can fall on either side.
    assert abs(int(mask.sum()) - 81_920) < 4.27 * 32_768**0.5 / 2
    assert ((source.factors[mask] >= 0.5).sum(1) % 2 == 0).all()
    assert ((source.factors[~mask] >= 0.5).sum(1) % 2 == 1).all()


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_cropped_and_random_splits_have_the_train_ratio(ratio: float) -> None:
    source = tetrominoes.source()
    assert source.factors is not None
    assert int(splits.random(source, ratio).sum()) == round(ratio * source.size)
    inside = splits.cropped(source, ratio)
    assert abs(float(inside.float().mean()) - ratio) < 0.01
    assert (source.factors[inside] - 0.5).abs().max() <= ratio**0.2 / 2 + 1e-6
