"""Splits, and the measure of their difficulty."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrovae import InputError, Run, Study, parts, run
from pyrovae.build import make_rows
from pyrovae.data import Dataset, Source, class_counts, divide, splits
from pyrovae.estimators import nearest_point
from pyrovae.measures.difficulty import measure
from pyrovae.measures.measure import TrainedRun
from pyrovae.study import Measure

SIZE = 300


@pytest.fixture
def source() -> Source:
    """Images of one pixel, their row, in three classes; the first 200 are the published training set."""
    rows = torch.arange(SIZE)
    return Source(
        "rows",
        SIZE,
        lambda rows: rows.to(torch.uint8)[:, None, None, None],
        factors=torch.rand(SIZE, 2, generator=torch.Generator().manual_seed(0)),
        labels=rows % 3,
        published=rows < 200,
    )


@pytest.mark.parametrize("name", parts.names("split"))
def test_split_is_a_deterministic_partition(name: str, source: Source) -> None:
    settings = {"held_out": "1"} if "held_out" in parts.settings_of("split", name) else {}
    masks = [parts.resolve("split", name)(source, **settings) for _ in range(2)]
    assert (masks[0].shape, masks[0].dtype) == ((SIZE,), torch.bool)
    assert torch.equal(*masks)
    train, test = divide(source, masks[0])
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(SIZE))
    assert min(len(train), len(test)) > 0
    assert train.tolist() != sorted(train.tolist())  # sorted rows would give batches of one class


def test_published_split_follows_the_source(source: Source) -> None:
    train, test = divide(source, splits.published(source))
    assert (train.max(), test.min()) == (199, 200)


# Other training sets


@pytest.mark.parametrize(
    "limits", [{"train_images": 40}, {"images_per_class": 15}, {"train_images": 40, "test_images": 7}]
)
def test_data_seed_draws_other_training_images_and_the_same_test_images(limits: dict[str, int], source: Source) -> None:
    mask = splits.published(source)
    first, test = divide(source, mask, **limits)
    drawn = [divide(source, mask, **limits, data_seed=seed) for seed in (0, 1, 1, 2)]
    assert torch.equal(drawn[0][0], first)
    assert torch.equal(drawn[1][0], drawn[2][0])
    assert len({frozenset(train.tolist()) for train, _ in drawn}) == 3
    for train, rows in drawn:
        assert torch.equal(rows, test)
        assert mask[train].all()
        assert len(train.unique()) == len(first)
        if "images_per_class" in limits:
            assert class_counts(source, train) == {0: 15, 1: 15, 2: 15}


def test_every_drawable_image_is_drawn_equally_often(source: Source) -> None:
    mask = splits.published(source)
    times, draws, share = torch.zeros(SIZE), 400, 50 / 200
    for seed in range(1, draws + 1):
        times[divide(source, mask, train_images=50, data_seed=seed)[0]] += 1
    assert times[~mask].sum() == 0
    deviations = (times[mask] - draws * share) / (draws * share * (1 - share)) ** 0.5
    assert deviations.abs().max() < 4.9  # 2e-4 for the largest of 200


def test_random_split_draws_from_all_images_that_are_not_test() -> None:
    settings: dict[str, Any] = {"split": "random", "train_ratio": 0.05, "test_images": 500}
    _, train, test, _ = make_rows(Run(**settings))
    _, other, same, _ = make_rows(Run(**settings, data_seed=3))
    assert torch.equal(test, same)
    assert len(other.unique()) == len(train)
    assert not torch.isin(other, test).any()
    assert 0.02 < torch.isin(other, train).float().mean() < 0.08  # one in twenty by chance


@pytest.mark.parametrize("settings", [{"split": "checkerboard"}, {"split": "random"}])
def test_data_seed_that_changes_no_image_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data_seed: expected a study in which it draws other"):
        make_rows(Run(**settings, data_seed=1))
    with pytest.raises(InputError, match="set train_images"):
        run(Study(name="mine", data_seed=[0, 1], **settings), tmp_path / "mine", quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("held_out", "classes"), [("1", {1}), ("0,2", {0, 2}), (" 0 , 2 ", {0, 2})])
def test_test_images_are_exactly_the_held_out_classes(held_out: str, classes: set[int], source: Source) -> None:
    train, test = divide(source, splits.held_out(source, held_out))
    assert source.labels is not None
    assert set(source.labels[test].tolist()) == classes
    assert set(source.labels[train].tolist()) == {0, 1, 2} - classes


@pytest.mark.parametrize("held_out", [None, "", "3", "1,3", "one", "1,", "-1", "1.0"])
def test_unknown_class_raises(held_out: str | None, source: Source) -> None:
    with pytest.raises(InputError, match="held_out: expected one or more of the 3 classes, 0, 1, 2, as in 2 or 0,2"):
        splits.held_out(source, held_out)


def test_images_per_class_are_balanced_and_nested(source: Source) -> None:
    mask = splits.published(source)
    everything, test = divide(source, mask)
    few, _ = divide(source, mask, images_per_class=5)
    more, test_of_more = divide(source, mask, images_per_class=20)
    assert class_counts(source, few) == {0: 5, 1: 5, 2: 5}
    assert class_counts(source, more) == {0: 20, 1: 20, 2: 20}
    assert set(few.tolist()) < set(more.tolist()) < set(everything.tolist())
    assert torch.equal(test, test_of_more)
    assert (few % 3).tolist() != sorted((few % 3).tolist())  # sorted classes would give batches of one class
    with pytest.raises(InputError, match="images_per_class: expected at most the 66 training images"):
        divide(source, mask, images_per_class=67)
    with pytest.raises(InputError, match="expected a data set with classes"):
        divide(Source("bare", SIZE, source.images), mask, images_per_class=5)


@pytest.mark.parametrize(
    ("split", "lacking"),
    [("published", "published split"), ("held_out", "classes"), ("checkerboard", "factors"), ("cropped", "factors")],
)
def test_split_without_required_labels_or_factors_raises(split: str, lacking: str) -> None:
    with pytest.raises(InputError, match=f"split: '{split}' needs .*{lacking}"):
        parts.resolve("split", split)(Source("bare", SIZE, lambda rows: rows))


@pytest.mark.parametrize(
    "mask",
    [torch.ones(SIZE, dtype=torch.uint8), torch.arange(SIZE), torch.ones(SIZE - 1) > 0, [True] * SIZE],
    ids=["uint8", "rows", "short", "list"],
)
def test_invalid_mask_raises(mask: Any, source: Source) -> None:
    with pytest.raises(InputError, match=r"split: expected which images are train, torch\.bool of shape"):
        divide(source, mask)


def test_split_with_fewer_than_two_images_raises(source: Source) -> None:
    for train in (0, 1, SIZE - 1, SIZE):
        with pytest.raises(InputError, match="expected at least 2"):
            divide(source, torch.arange(SIZE) < train)


@pytest.mark.parametrize(
    "known",
    [
        {"labels": torch.zeros(SIZE - 1, dtype=torch.long)},
        {"labels": torch.zeros(SIZE)},
        {"published": torch.ones(SIZE, dtype=torch.long)},
        {"factors": torch.ones(SIZE, 2, dtype=torch.long)},
    ],
)
def test_source_checks_type_and_length_of_its_columns(known: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError, match=f"bare: expected {next(iter(known))} of type"):
        Source("bare", SIZE, lambda rows: rows, **known)


@pytest.mark.parametrize("images", [torch.zeros(3, 1, 4, 4).double(), torch.zeros(2, 1, 4, 4), np.zeros((3, 1, 4, 4))])
def test_load_rejects_invalid_images(images: Any) -> None:
    with pytest.raises(InputError, match="bare: expected 3 images as a uint8 or float32 tensor, got"):
        Source("bare", 3, lambda rows: images).load(torch.arange(3))


def test_class_labels_need_not_be_consecutive(source: Source) -> None:
    assert source.labels is not None
    gaps = replace(source, labels=source.labels * 10**12 + 5)
    train, test = divide(gaps, splits.held_out(gaps, str(10**12 + 5)), images_per_class=7)
    assert class_counts(gaps, train) == {5: 7, 10**12 + 5: 0, 2 * 10**12 + 5: 7}
    assert class_counts(gaps, test) == {5: 0, 10**12 + 5: 100, 2 * 10**12 + 5: 0}


def test_random_split_has_the_train_ratio(source: Source) -> None:
    for ratio in (0.1, 0.5, 0.9):
        assert splits.random(source, ratio).sum() == round(ratio * SIZE)
    assert torch.equal(splits.random(source), splits.random(source, 0.5))


def test_nearest_point_matches_exhaustive_search(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    training = torch.randint(256, (5000, 2, 3), dtype=torch.uint8, generator=generator)
    points = torch.randint(256, (1100, 2, 3), dtype=torch.uint8, generator=generator)
    points[7] = training[4321]
    everything = torch.cdist((points / 255).flatten(1).double(), (training / 255).flatten(1).double())
    torch.testing.assert_close(
        nearest_point(points, training).distance.double(), everything.amin(1), rtol=1e-5, atol=1e-7
    )
    assert nearest_point(points, training).distance[7] == 0
    own = torch.arange(4999, -1, -1)[:1100]
    others = torch.cdist((training / 255).flatten(1).double(), (training / 255).flatten(1).double()).fill_diagonal_(9)
    found = nearest_point(training[own], training, own).distance.double()
    torch.testing.assert_close(found, others.amin(1)[own], rtol=1e-5, atol=1e-7)


def difficulty(data: Dataset) -> dict[str, Any]:
    """The values that the measure returns; it uses nothing of a trained run but its data and settings."""
    nothing: Any = None
    return measure(TrainedRun(nothing, data, Measure(outer=200), 0, {}, nothing, nothing)).values


def test_distances_are_larger_for_a_harder_split(source: Source) -> None:
    assert source.factors is not None
    generator = torch.Generator().manual_seed(0)
    train = torch.rand(400, 1, 2, 2, generator=generator)
    easy, hard = torch.rand(300, 1, 2, 2, generator=generator), 2 + torch.rand(300, 1, 2, 2, generator=generator)
    near = difficulty(Dataset(train, easy))
    far = difficulty(Dataset(train, hard, factors=(source.factors[:400], source.factors[:300])))
    assert near["images"] == (400, 300)
    assert near["factor_distance"] is None
    # Under one distribution, test images are as far from training images as these are from each other.
    seen, unseen = near["pixel_distance"]
    error = (seen.var() / len(seen) + unseen.var() / len(unseen)).sqrt()
    assert abs(unseen.mean() - seen.mean()) < 4.27 * error
    seen, unseen = far["pixel_distance"]
    assert unseen.mean() > seen.mean() + 2
    # The test images' factors are those of the first training images.
    seen, unseen = far["factor_distance"]
    assert unseen.max() == 0 < seen.mean()


def test_copies_are_images_that_another_training_image_equals() -> None:
    train = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    train[7] = train[3]
    found = difficulty(Dataset(train, torch.cat([train[:1], 2 + train[:3]])))
    assert [float(each) for each in found["copies"]] == [2 / 40, 1 / 4]
