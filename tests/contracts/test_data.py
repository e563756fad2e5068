"""The contract of data sets that need no download: each in `pyrovae.parts` is tested here."""

import sys

import pytest
import torch

from pyrovae import InputError, parts
from pyrovae.data import Source

DATA = [name for name, path in parts.names("data").items() if not path.startswith("pyrovae.data.torchvision_datasets:")]


@pytest.mark.parametrize("name", DATA)
def test_images_depend_on_their_row_only(name: str) -> None:
    source = parts.resolve("data", name)()
    assert isinstance(source, Source)
    rows = torch.tensor([source.size - 1, 0, 1])
    images = source.load(rows)
    for row, image in zip(rows, images, strict=True):
        assert torch.equal(source.load(row[None])[0], image)
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("name", DATA)
def test_factors_lie_between_0_and_1(name: str) -> None:
    factors = parts.resolve("data", name)().factors
    assert factors is None or ((factors >= 0) & (factors <= 1)).all()


def test_table_without_scikit_learn_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"data: expected scikit-learn, .* python -m pip install 'pyrovae\[tables\]'$"):
        parts.resolve("data", "wine")()
