import re

import numpy as np
import pytest
import xarray as xr
from helpers import InMemory

from pyrovae import Study, open_results
from pyrovae.analysis.findings.design import prospects
from pyrovae.analysis.report.paper import PAPER, UNTESTED, crossings, rows
from pyrovae.store import schema

STUDY = Study(name="mine", beta=[0.1, 1, 3], depth=[1, 3], seed=[0, 1, 2])


def results(sign: float) -> InMemory:
    """Results in which training distortion rises, or falls, with β, and deep networks are better after 100 steps."""
    tree = schema.empty(STUDY)
    tree["runs"]["status"][:] = "done"
    axes = {axis: list(values) for axis, values in STUDY.axes.items()}
    coords = {**axes, "split": ["train", "test"], "image": range(50)}
    noise = np.random.default_rng(0).normal(size=[len(each) for each in coords.values()])
    beta = xr.DataArray(axes["beta"], dims="beta")
    images = xr.Dataset({"distortion": (list(coords), noise)}, coords) + 100 + 10 * sign * beta
    return InMemory(tree, images.transpose(*coords))


@pytest.mark.parametrize(("sign", "outcome"), [(1, "supported"), (-1, "contradicted")])
def test_each_finding_of_the_paper_has_a_row_with_its_verdict(sign: float, outcome: str) -> None:
    found = list(rows({"mine": results(sign)}))
    assert [text.partition(".")[0] for text, *_ in found] == list(map(str, PAPER))
    by_number = dict(zip(PAPER, found, strict=True))
    assert by_number[5][1].startswith(f"mine: {outcome}: Raising β from 1 to 3")
    assert by_number[5][2] == "`pyrovae show mine findings`"
    assert by_number[10][1:] == (UNTESTED, "")


def test_crossing_is_the_step_after_the_last_one_behind() -> None:
    lead = [1.0, -2.0, 1.0, -1.0, 2.0, 3.0]  # of the deep network
    values = np.stack([np.full(6, 50.0), 50 - np.array(lead)])[None, None]
    coords = {"split": ["test"], "beta": [1.0], "depth": [1, 3], "step": [1, 10, 100, 1000, 2000, 5000]}
    (line,) = crossings(xr.DataArray(values, coords, list(coords)))
    assert line == "β = 1: from step 2,000 on (−1.0 nats at step 1,000, +3.0 at 5,000; 1 seed)"
    (never,) = crossings(xr.DataArray(values[:, :, ::-1], coords, list(coords)).isel(step=slice(None, 4)))
    assert never.startswith("β = 1: from step 1,000 on")
    (never,) = crossings(xr.DataArray(values, coords, list(coords)).isel(step=slice(None, 4)))
    assert never.startswith("β = 1: not within 1,000 steps")


def test_plan_of_a_finished_study_expects_what_its_verdicts_say() -> None:
    """Degrees of freedom are those of the β at which I is saturated, and so the same effects would be found."""
    kept = open_results("paper-slice")
    lines = list(prospects(kept.study, kept.findings()))
    for verdict in kept.findings():
        if verdict.outcome == "undecided":
            size = re.search(r"; ([\d.]+ \w+) or more could have been detected", verdict.words)
            assert size is not None
            expected = f"{size[1]} ({verdict.contrast.where})" if verdict.contrast.where else size[1]
            assert any("detects effects of" in line and expected in line for line in lines)
    grows = [line for line in lines if "G grows" in line]
    found = [verdict for verdict in kept.findings() if verdict.finding.number == 7]
    assert [f": {verdict.contrast.effect.runs.df:g} df" in " ".join(grows) for verdict in found] == [True, True]
