"""Data in memory and in tables, and studies of them."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import no_drawing
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from pyrovae import InputError, Results, Study, open_results
from pyrovae.build import make_data, make_source
from pyrovae.data import Source, memory
from pyrovae.runner.folders import merge
from pyrovae.runner.remeasure import reevaluate
from pyrovae.study import Run

X = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
BYTES = (255 * X).byte()
SMALL: dict[str, Any] = {
    "name": "mine", "width": 4, "latent_size": 2, "steps": 2, "batch_size": 8,
    "measure": {"images": 8, "outer": 4, "likelihood_images": 4, "particles": 4, "reconstructions": 4, "probe": 4,
                "points": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_drawing() -> Iterator[None]:
    with no_drawing():
        yield


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets all data, as a new process does."""
    return lambda: monkeypatch.setattr(memory, "_KNOWN", {})


class Pictures(Dataset[Any]):
    """Grey pictures as arrays, perhaps with a label."""

    def __init__(self, labelled: bool) -> None:
        self.labelled = labelled

    def __len__(self) -> int:
        return len(BYTES)

    def __getitem__(self, number: int) -> Any:
        if number >= len(self):
            raise IndexError
        picture = BYTES[number, 0].numpy()
        return (picture, number % 3) if self.labelled else picture


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


def loaded(x: Any, **test: Any) -> tuple[Source, Tensor]:
    source = make_source(Run(**memory.settings_of(x, **test)))
    return source, source.load(torch.arange(source.size))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (X, X),
        (X.double(), X),
        (X[:, 0].numpy(), X),
        (BYTES, BYTES),
        (BYTES.expand(-1, 3, -1, -1).movedim(1, -1), BYTES.expand(-1, 3, -1, -1)),
        (X.flatten(1), X.flatten(1)),
        (-3 * X, -3 * X),
        (BYTES.long(), BYTES.float()),
        (BYTES > 100, (BYTES > 100).float()),
        (TensorDataset(X), X),
        (Pictures(labelled=False), BYTES),
        (Source("own", 24, lambda rows: BYTES[rows]), BYTES),
    ],
)
def test_data_in_memory_keep_their_values_and_meaning(x: Any, expected: Tensor) -> None:
    found = loaded(x)[1]
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_labels_and_the_given_split_are_carried_along() -> None:
    source, _ = loaded(Pictures(labelled=True), test=TensorDataset(BYTES[:4], torch.arange(4)))
    assert source.labels is not None
    assert source.labels.tolist() == [*(number % 3 for number in range(24)), 0, 1, 2, 3]
    study = Study(X, test=X[:4])
    assert study.base.split == "published"
    data = make_data(study.base.model_copy(update={"batch_size": 8}))
    assert (len(data.train), len(data.test)) == (24, 4)


def test_labels_and_factors_reach_splits_results_and_arviz(tmp_path: Path) -> None:
    labels, factors = torch.arange(24) % 3, torch.linspace(0, 1, 48).reshape(24, 2)
    study = Study(X, labels=labels.numpy(), factors=factors, split="held_out", held_out=1, **SMALL)
    results = study.run(tmp_path / "mine", quiet=True)
    found = results.images(beta=1, seed=0)["distortion"]["label"]
    assert set(found.sel(split="test").values[:8]) == {1}
    assert set(found.sel(split="train").values[:8]) == {0, 2}
    assert results.tree["difficulty/factor_distance"].notnull().all()
    coords = {"label": labels[:2], "angle": factors[:2, 0]}
    data = results.pair().to_inference_data(X[:2], draws=2, coords=coords)
    for group in ("posterior", "prior_predictive", "observed_data"):
        assert data[group]["label"].values.tolist() == [0, 1]
        assert data[group]["angle"].dims == ("image",)
    with pytest.raises(InputError, match="coords: expected 2 values of 'label', one an image"):
        results.pair().to_inference_data(X[:2], draws=2, coords={"label": labels})


def test_labels_of_training_and_test_images_are_joined() -> None:
    source, _ = loaded(X, test=X[:2], labels=(np.arange(24), [7, 8]), factors=(torch.zeros(24, 1), torch.ones(2, 1)))
    assert source.labels is not None
    assert source.factors is not None
    assert source.labels.tolist() == [*range(24), 7, 8]
    assert source.factors.flatten().tolist() == [0] * 24 + [1] * 2
    assert memory.settings_of(X)["data"] != memory.settings_of(X, labels=torch.arange(24))["data"]


def test_labels_of_a_torch_data_set_are_checked() -> None:
    with pytest.raises(InputError, match=r"labels: expected integers ≥ 0, .*, some below 0"):
        memory.settings_of(TensorDataset(X, torch.arange(24) - 1))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"labels": torch.arange(3)}, r"labels: expected integers ≥ 0, one for each of the 24 items, .* shape \[3\]"),
        ({"labels": -torch.arange(24)}, "some below 0"),
        ({"labels": torch.rand(24)}, "labels: expected integers ≥ 0"),
        (
            {"labels": ["a"] * 24},
            "^labels: expected numbers of one shape, as a tensor, an array or a torch data set, got",
        ),
        ({"factors": torch.rand(24)}, r"factors: expected numbers in \[0, 1\], \[24, factors\], got shape \[24\]"),
        ({"factors": 3 * torch.ones(24, 2)}, "from 3 to 3"),
        ({"labels": torch.arange(24), "test": X[:2]}, "labels: expected a pair, those of x and those of test"),
    ],
)
def test_invalid_labels_and_factors_give_one_line(columns: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Study(X, **columns)


def test_array_as_a_setting_is_one_line() -> None:
    with pytest.raises(
        InputError, match=r"^offset: expected a value, or a list .* array of shape \[24, 1\]; put what differs"
    ):
        Study(X, offset=np.ones((24, 1)))


def test_array_of_values_is_an_axis() -> None:
    assert Study(X, beta=np.logspace(-1, 1, 3)).axes["beta"] == (0.1, 1.0, 10.0)
    short = np.array([0.1, 0.3], np.float32)
    for values in (short, torch.tensor(short), list(short), tuple(torch.tensor(short))):
        assert Study(X, beta=values).axes["beta"] == (0.1, 0.3)
    assert Study(X, beta=short[0], seed=np.int64(3)).base.beta == 0.1


@pytest.mark.parametrize(
    ("test", "settings", "expected"), [(None, {}, 12), (X[:2] / 2, {}, 24), (None, {"train_ratio": 0.25}, 6)]
)
def test_batch_is_no_larger_than_the_training_images(
    test: Tensor | None, settings: dict[str, Any], expected: int
) -> None:
    study = Study(X, test=test, split="random", **settings) if test is None else Study(X, test=test, **settings)
    assert study.base.batch_size == expected == len(make_data(study.runs()[0]).train)
    assert Study(X, batch_size=5).base.batch_size == 5


@pytest.mark.parametrize(("scales", "warned"), [([1, 1, 50], True), ([100, 100, 100], True), ([1, 2, 5], False)])
def test_columns_far_from_one_in_size_are_warned_of(scales: list[float], warned: bool) -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(scales)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        memory.settings_of(x)
        memory.settings_of(x.round())  # counts may differ
    assert [str(each.message).startswith("data: expected columns") for each in caught] == [True] * warned


def test_data_in_memory_outside_the_support_are_called_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="likelihood: 'bernoulli' on data in memory: expected values in"):
        Study(2 * X + 0.1, **SMALL).run(tmp_path / "mine", quiet=True)


def test_data_are_given_once() -> None:
    with pytest.raises(InputError, match="data: expected data once"):
        Study(X, data="mnist")


def test_later_changes_of_a_tensor_do_not_reach_the_data() -> None:
    mine = X.clone()
    name = memory.settings_of(mine)["data"]
    mine.zero_()
    assert torch.equal(memory.find(name).load(torch.arange(24)), X)


def test_equal_data_have_one_name_and_others_another() -> None:
    assert memory.settings_of(X) == memory.settings_of(X.numpy()) == memory.settings_of(X[:, 0].double())
    names = [memory.settings_of(x, test)["data"] for x, test in ((X, None), (X + 0.1, None), (X, X[:2]), (BYTES, None))]
    assert len(set(names)) == 4


@pytest.mark.parametrize(
    ("x", "test", "expected"),
    [
        (X[0, 0, 0], None, r"expected images .*got torch.float32 of shape \[4\]"),
        (X[:, :, None], None, "expected images"),
        (X[:0], None, "expected images"),
        (X + 1j, None, "expected images"),
        (X.where(X[3, 0, 0, 0] != X, torch.inf), None, r"got NaN or ∞ in 1 of 24 items, first in item 3"),
        (["a", "b"], None, "expected numbers of one shape"),
        (np.array(["a"]), None, "expected numbers of one shape"),
        ({}, None, "expected numbers of one shape"),
        (Endless(), None, "expected a torch data set with a length and items by number, got Endless"),
        (X, X[..., :3], r"test: expected items of shape \[1, 4, 4\], as for training, got \[1, 4, 3\]"),
        (X, BYTES, "test: expected torch.float32, as for training, got torch.uint8; give both"),
        (X, X.where(X[3, 0, 0, 0] != X, torch.nan), r"^test: .* first in item 3"),
        (X, X.clone(), "test: expected images that are not trained on"),
        ((X, torch.arange(24)), None, "data: expected images or vectors alone, got 2 things; give labels by labels="),
        ((X > 0.5).byte(), None, "data: expected uint8 pixels from 0 to 255, got only values up to 1"),
        ("nowhere", X, "nowhere: expected a folder of images"),
        (
            np.ma.masked_less(X.numpy(), 0.2),
            None,
            "data: expected numbers without gaps, got [0-9]+ masked ones",
        ),
        (X, np.ma.masked_less(X.numpy(), 0.2), "test: expected numbers without gaps"),
    ],
)
def test_invalid_data_give_one_line(x: Any, test: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        memory.settings_of(x, test)


# Files


def write_table(path: Path, **columns: Any) -> str:
    table = pd.DataFrame({"a": [0.5, 1.5, 2.5], "b": [1, 2, 3]} | columns)
    (table.to_parquet if path.suffix == ".parquet" else table.to_csv)(path, index=False)
    return str(path)


@pytest.mark.parametrize("name", ["mine.csv", "mine.parquet"])
def test_table_is_vectors_with_labels_and_split(name: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / name, label=[2, 0, 1], train=[True, True, False])
    source = make_source(Run(data=path))
    assert source.load(torch.arange(3)).tolist() == [[0.5, 1], [1.5, 2], [2.5, 3]]
    assert source.labels is not None
    assert source.published is not None
    assert (source.labels.tolist(), source.published.tolist()) == ([2, 0, 1], [True, True, False])


def test_ending_of_a_file_is_read_in_any_case(tmp_path: Path) -> None:
    assert make_source(Run(data=write_table(tmp_path / "mine.CSV"))).size == 3


def test_column_that_float32_makes_constant_is_warned_of() -> None:
    times = np.array([[1.7e9, 0.5], [1.7e9 + 20, 1.5], [1.7e9 + 40, -0.5]])
    with pytest.warns(UserWarning, match=r"got column 0, from 1700000000.0 to 1700000040.0, which becomes constant"):
        memory.source_of(times)


def test_sparse_tensor_is_its_numbers() -> None:
    assert torch.equal(memory.source_of(X[:, 0].to_sparse()).load(torch.arange(24)), X)


@pytest.mark.parametrize("target", ["cat", {"boxes": [1]}, None, 0.5])
def test_targets_that_are_no_classes_are_no_labels(target: Any) -> None:
    class Scenes(Dataset[Any]):
        def __len__(self) -> int:
            return len(BYTES)

        def __getitem__(self, number: int) -> Any:
            return BYTES[number], target

    assert memory.source_of(Scenes()).labels is None


def test_numbers_in_another_byte_order_are_read() -> None:
    assert torch.equal(memory.source_of(X.numpy().astype(">f4")).load(torch.arange(24)), X)


def test_spaces_and_commas_at_the_ends_of_a_table_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("a, b, label\n1, 2, 0\n3, 4, 1\n5,6,1\n", encoding="utf-8")
    source = make_source(Run(data=str(tmp_path / "mine.csv")))
    assert source.load(torch.arange(3)).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 1]


def test_npy_file_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", BYTES[:, 0].numpy())
    assert torch.equal(make_source(Run(data=str(tmp_path / "mine.npy"))).load(torch.arange(24)), BYTES)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (
            lambda folder: write_table(folder / "a.csv", name=["x", "y", "z"]),
            "got .* in column 'name'",
        ),
        (lambda folder: write_table(folder / "a.csv", label=[-1, 0, 1]), "integers ≥ 0 in column 'label'"),
        (lambda folder: write_table(folder / "a.csv", train=[0, 1, 2]), "true or false in column 'train'"),
        (lambda folder: write_table(folder / "a.csv", b=[1, np.nan, 3]), r"a.csv: .* none in column 'b' of row 1"),
        (lambda folder: (folder / "a.csv").write_text("a,b\n1,2\n3\n"), "column 'b' of row 1: .*too few fields"),
        (lambda folder: write_table(folder / "a.csv", label=[1, None, 0]), "integers ≥ 0 in .*'label', got a missing"),
        (lambda folder: write_table(folder / "a.csv", train=[True, None, True]), "true or false in .*got a missing"),
        (lambda folder: write_table(folder / "a.parquet", label=np.array([0, 1, 2**63], np.uint64)), "integers ≥ 0 in"),
        (lambda folder: write_table(folder / "a.csv", Label=[0, 1, 2]), "expected column 'label', got 'Label'"),
        (lambda folder: write_table(folder / "a.parquet", **{"train ": [True] * 3}), "'train', got 'train '"),
        (lambda folder: (folder / "a.csv").write_text("a,b,a\n1,2,3\n"), "several columns called 'a'"),
        (
            lambda folder: (folder / "a.csv").write_text("a;b\n1;2\n"),
            "a single column, 'a;b'; separate fields by commas",
        ),
        (
            lambda folder: write_table(folder / "a.csv", b=[1, 1e39, 3]),
            r"a.csv: expected numbers that float32 can hold",
        ),
        (lambda folder: (folder / "a.csv").write_text(""), "expected a table"),
        (
            lambda folder: (folder / "a.csv").write_text("a;b\n1,5;2,5\n3,5;4,5\n"),
            "rows with more fields than the header",
        ),
        (
            lambda folder: (folder / "a.csv").write_text("a,b\n10,1,2\n20,4,5\n"),
            "rows with more fields than the header",
        ),
        (lambda folder: (folder / "a.csv").write_text(",a\n0,1\n1,2\n"), r"no name for column 0; .*index=False"),
        (lambda folder: (folder / "a.csv").write_text("1.5,2\n3,4\n5,6\n"), "the numbers 1.5, 2 in the header"),
        (lambda folder: (folder / "a.parquet").write_text("nothing"), "expected a table"),
        (lambda folder: (folder / "a.npy").write_text("nothing"), "expected an array written by numpy.save"),
        (lambda folder: np.savez(folder / "a.npz", x=1) or (folder / "a.npz").rename(folder / "a.npy"), "call it .npz"),
        (lambda folder: (folder / "a.csv").mkdir(), "expected a file, got a folder"),
    ],
)
def test_invalid_file_gives_one_line(write: Callable[[Path], object], expected: str, tmp_path: Path) -> None:
    write(tmp_path)
    (file,) = tmp_path.iterdir()
    with pytest.raises(InputError, match=expected):
        make_source(Run(data=str(file))) if file.is_file() else memory.source_of(file)


# Studies


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Results:
    with no_drawing():
        return Study(X, test=X[:8], beta=[0.1, 1], **SMALL).run(tmp_path_factory.mktemp("study") / "mine", quiet=True)


@pytest.fixture
def folder(made: Results, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "mine"))


def test_test_images_among_the_training_images_are_a_caveat(made: Results) -> None:
    (line,) = [each for each in made.caveats() if "also training images" in each]
    assert line.startswith("100% of the test images")


def test_study_is_evaluated_and_grows_from_its_folder_alone(folder: Path, forgotten: Callable[[], None]) -> None:
    forgotten()
    reevaluate(folder, samples=2)
    forgotten()
    grown = Study.load(folder / "study.yaml").replace(beta=[0.1, 1, 4]).run(folder, quiet=True)
    assert set(grown.tree["runs/status"].values.flat) == {"done"}


def test_data_are_read_from_where_their_study_is_now(folder: Path, forgotten: Callable[[], None]) -> None:
    """Such as the folder of a worker, which goes after each job."""
    forgotten()
    memory.attach(folder)
    memory.attach(folder := folder.rename(folder.with_name("moved")))
    assert memory.find(Study.load(folder / "study.yaml").base.data).size == len(X) + 8


def test_study_goes_on_only_with_the_same_data(folder: Path) -> None:
    Study(X.numpy(), test=X[:8], beta=[0.1, 1], **SMALL).run(folder, quiet=True)
    with pytest.raises(InputError, match=r"data: memory-\w+ before, memory-\w+ now"):
        Study(X + 0.001, test=X[:8], likelihood="gaussian", beta=[0.1, 1], **SMALL).run(folder, quiet=True)


def test_merged_study_keeps_its_data(folder: Path, tmp_path: Path) -> None:
    merge([folder, Path(shutil.copytree(folder, tmp_path / "other"))], tmp_path / "both")
    assert (tmp_path / "both" / memory.FILE).read_bytes() == (folder / memory.FILE).read_bytes()


def test_large_data_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: Callable[[], None]
) -> None:
    monkeypatch.setattr(memory, "LIMIT", X.nbytes - 1)
    folder = Study(X, split="random", **SMALL).run(tmp_path / "mine", quiet=True).folder
    assert (folder / memory.FILE).stat().st_size < X.nbytes
    forgotten()
    assert open_results(folder).pair().origin is not None
    with pytest.raises(InputError, match=r"which are not kept in its folder; give them with pyrovae.open_results"):
        reevaluate(folder, samples=2)
    with pytest.raises(InputError, match="expected those of the study"):
        open_results(folder, data=BYTES)
    open_results(folder, data=X.numpy())
    reevaluate(folder, samples=2)


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:-4]), lambda file: file.unlink()])
def test_results_are_read_without_their_data(
    damage: Callable[[Path], object], folder: Path, forgotten: Callable[[], None]
) -> None:
    damage(folder / memory.FILE)
    forgotten()
    assert open_results(folder).pair(beta=1).origin is not None
    with pytest.raises(InputError, match="expected the data"):
        reevaluate(folder, samples=2)
