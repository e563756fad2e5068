from csv import DictReader
from io import StringIO

import numpy as np
import pandas as pd
import xarray as xr
from pandas.api.types import is_numeric_dtype

from pyrovae import Study
from pyrovae.analysis.report.export import csv, frame
from pyrovae.store import schema


def results_of(**settings: object) -> xr.DataTree:
    """Results of a study with random numbers, over two latent sites."""
    tree = schema.empty(Study(name="mine", **settings))
    rng = np.random.default_rng(0)
    rate = tree["rate_distortion"].to_dataset()["rate"]
    tree["levels"] = xr.DataTree(xr.Dataset({"rate": rate.expand_dims(level=["z", "w"]).copy()}))
    for group in ("rate_distortion", "information", "likelihood", "memorisation", "levels"):
        for values in tree[group].data_vars.values():
            values[:] = rng.uniform(1, 9, values.shape)
    return tree


def test_each_number_has_its_own_cell() -> None:
    tree = results_of(beta=[0.1, 1], seed=[0, 1], prior=["vamp", "flow"])
    tree["runs"]["step"].loc[{"beta": 1.0}] = 7
    shown, seen = frame(tree), 0
    assert shown.columns[:5].tolist() == ["beta", "seed", "prior", "status", "step"]
    for _, row in shown.iterrows():
        at = row[["beta", "seed", "prior"]].to_dict()
        assert row["step"] == (7 if at["beta"] == 1 else -1)
        for column in shown.columns[5:]:
            group, variable, *place = column.split("/")
            dims = {1: ["split"], 2: ["level", "split"]}.get(len(place), [])
            expected = tree[group][variable].sel(at | dict(zip(dims, place, strict=True)))
            np.testing.assert_equal(row[column], expected.item())
            seen += 1
    numbers = [name for name in tree.children if name not in ("runs", "curves")]
    assert seen == sum(values.size for name in numbers for values in tree[name].data_vars.values())
    assert {"levels/rate/w/test", "rate_distortion/distortion_se/train"} <= set(shown.columns)


def assert_same(rows: list[dict[str, str]], expected: pd.DataFrame) -> None:
    """Asserts that text has the values of a table, numbers to the last digit."""
    for name, values in expected.items():
        cells = [row[name] for row in rows]
        if is_numeric_dtype(values):
            np.testing.assert_array_equal([float(cell or "nan") for cell in cells], values)
        else:
            assert cells == values.tolist()


def test_csv_holds_every_digit() -> None:
    tree = results_of(beta=[0.1, 1], seed=[0, 1])
    rows = list(DictReader(StringIO(csv({"mine": tree}))))
    assert list(rows[0]) == frame(tree).columns.tolist()
    assert_same(rows, frame(tree))


def test_csv_of_several_studies_names_the_study_of_each_run() -> None:
    trees = {"one": results_of(beta=[0.1, 1]), "two": results_of(beta=1, prior=["vamp", "flow"])}
    rows = list(DictReader(StringIO(csv(trees))))
    assert next(iter(rows[0])) == "study"
    assert [row["prior"] for row in rows] == ["", "", "vamp", "flow"]
    for name, tree in trees.items():
        assert_same([row for row in rows if row["study"] == name], frame(tree))
