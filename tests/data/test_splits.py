"""What is train and what is test, and how hard that makes it to generalize."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrovae import InputError, Run, build
from pyrovae.data import Dataset, Source, class_counts, divide, splits
from pyrovae.estimators import nearest_point
from pyrovae.measures.difficulty import difficulty
from pyrovae.runner.validation import check_names
from pyrovae.study.grid import Measure

SIZE = 300


@pytest.fixture
def source() -> Source:
    """Images whose one pixel is their row, of three classes, with the first 200 published as training images."""
    rows = torch.arange(SIZE)
    return Source(
        "rows",
        SIZE,
        lambda chosen: chosen.to(torch.uint8)[:, None, None, None],
        factors=torch.rand(SIZE, 2, generator=torch.Generator().manual_seed(0)),
        labels=rows % 3,
        published=rows < 200,
    )


@pytest.mark.parametrize("name", sorted(build.SPLITS))
def test_every_image_is_on_one_side_and_the_same_at_every_call(name: str, source: Source) -> None:
    settings = {"held_out": "1"} if name == "held_out" else {}
    masks = [build.SPLITS[name](source, **settings) for _ in range(2)]
    assert (masks[0].shape, masks[0].dtype) == ((SIZE,), torch.bool)
    assert torch.equal(*masks)
    train, test = divide(source, masks[0])
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(SIZE))
    assert min(len(train), len(test)) > 0
    assert train.tolist() != sorted(train.tolist())  # batches of a sorted set would hold one class


def test_published_split_is_that_of_the_authors(source: Source) -> None:
    train, test = divide(source, splits.published(source))
    assert (train.max(), test.min()) == (199, 200)


@pytest.mark.parametrize(("held_out", "classes"), [("1", {1}), ("0,2", {0, 2}), (" 0 , 2 ", {0, 2})])
def test_held_out_classes_are_test_and_nothing_else_is(held_out: str, classes: set[int], source: Source) -> None:
    train, test = divide(source, splits.held_out(source, held_out))
    assert source.labels is not None
    assert set(source.labels[test].tolist()) == classes
    assert set(source.labels[train].tolist()) == {0, 1, 2} - classes


@pytest.mark.parametrize("held_out", [None, "", "3", "1,3", "one", "1,", "-1", "1.0"])
def test_class_that_does_not_exist_is_refused(held_out: str | None, source: Source) -> None:
    with pytest.raises(InputError, match="held_out: expected one or more of the 3 classes, 0, 1, 2, as in 2 or 0,2"):
        splits.held_out(source, held_out)


def test_few_images_per_class_are_few_of_every_class_and_more_include_fewer(source: Source) -> None:
    mask = splits.published(source)
    everything, test = divide(source, mask)
    few, _ = divide(source, mask, images_per_class=5)
    more, test_of_more = divide(source, mask, images_per_class=20)
    assert class_counts(source, few) == {0: 5, 1: 5, 2: 5}
    assert class_counts(source, more) == {0: 20, 1: 20, 2: 20}
    assert set(few.tolist()) < set(more.tolist()) < set(everything.tolist())
    assert torch.equal(test, test_of_more)
    assert (few % 3).tolist() != sorted((few % 3).tolist())  # batches sorted by class would hold one each
    with pytest.raises(InputError, match="images_per_class: expected at most the 66 training images"):
        divide(source, mask, images_per_class=67)
    with pytest.raises(InputError, match="expected a data set with classes"):
        divide(Source("bare", SIZE, source.images), mask, images_per_class=5)


@pytest.mark.parametrize(
    ("split", "lacking"),
    [("published", "authors"), ("held_out", "classes"), ("checkerboard", "factors"), ("cropped", "factors")],
)
def test_split_of_a_set_that_lacks_what_it_needs_is_refused(split: str, lacking: str) -> None:
    with pytest.raises(InputError, match=f"split: '{split}' needs .*{lacking}"):
        build.SPLITS[split](Source("bare", SIZE, lambda rows: rows))


def test_setting_that_a_split_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match=r"train_ratio: the split 'checkerboard' does not take it, got 0\.3"):
        check_names([Run(split="checkerboard", train_ratio=0.3)])
    with pytest.raises(InputError, match="held_out: the split 'random' does not take it, got 9"):
        check_names([Run(held_out="9")])
    check_names([Run(held_out="9"), Run(held_out="9", split="held_out")])


@pytest.mark.parametrize(
    "mask",
    [torch.ones(SIZE, dtype=torch.uint8), torch.arange(SIZE), torch.ones(SIZE - 1) > 0, [True] * SIZE],
    ids=["uint8", "rows", "short", "list"],
)
def test_mask_that_is_none_is_refused(mask: Any, source: Source) -> None:
    with pytest.raises(InputError, match=r"split: expected which images are train, torch\.bool of shape"):
        divide(source, mask)


def test_side_with_less_than_two_images_is_refused(source: Source) -> None:
    for train in (0, 1, SIZE - 1, SIZE):
        with pytest.raises(InputError, match="two at the least"):
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
def test_what_is_known_of_images_has_its_type_and_one_entry_an_image(known: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError, match=f"bare: expected {next(iter(known))} of type"):
        Source("bare", SIZE, lambda rows: rows, **known)


@pytest.mark.parametrize("images", [torch.zeros(3, 1, 4, 4).double(), torch.zeros(2, 1, 4, 4), np.zeros((3, 1, 4, 4))])
def test_what_is_no_image_is_refused(images: Any) -> None:
    with pytest.raises(InputError, match="bare: expected 3 images as a uint8 or float32 tensor, got"):
        Source("bare", 3, lambda rows: images).chosen(torch.arange(3))


def test_classes_may_have_any_numbers(source: Source) -> None:
    assert source.labels is not None
    gaps = replace(source, labels=source.labels * 10**12 + 5)
    train, test = divide(gaps, splits.held_out(gaps, str(10**12 + 5)), images_per_class=7)
    assert class_counts(gaps, train) == {5: 7, 10**12 + 5: 0, 2 * 10**12 + 5: 7}
    assert class_counts(gaps, test) == {5: 0, 10**12 + 5: 100, 2 * 10**12 + 5: 0}


def test_ratio_of_train_is_kept(source: Source) -> None:
    for ratio in (0.1, 0.5, 0.9):
        assert splits.random(source, ratio).sum() == round(ratio * SIZE)
    assert torch.equal(splits.random(source), splits.random(source, 0.5))


def test_nearest_distance_is_that_of_a_search_over_all(tmp_path: Path) -> None:
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


def test_difficulty_tells_a_hard_split_from_an_easy_one(source: Source) -> None:
    assert source.factors is not None
    generator = torch.Generator().manual_seed(0)
    train = torch.rand(400, 1, 2, 2, generator=generator)
    easy, hard = torch.rand(300, 1, 2, 2, generator=generator), 2 + torch.rand(300, 1, 2, 2, generator=generator)
    near = difficulty(Dataset(train, easy), Measure(outer=200))
    far = difficulty(Dataset(train, hard, factors=(source.factors[:400], source.factors[:300])), Measure(outer=200))
    assert near["images"].tolist() == [400, 300]
    assert "factor_distance" not in near
    # A test image from where the training images are is as far from them as they are from each other.
    gap = near["pixel_distance"][1] - near["pixel_distance"][0]
    assert abs(gap) < 4.27 * np.hypot(*near["pixel_distance_se"])
    assert far["pixel_distance"][1] > far["pixel_distance"][0] + 2
    assert far["factor_distance"][1] == 0 < far["factor_distance"][0]
