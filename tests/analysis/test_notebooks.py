import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "analysis/notebooks").glob("*.ipynb"))


def test_all_documented_notebooks_exist() -> None:
    assert {file.stem for file in NOTEBOOKS} == {
        "diagnosing_a_guide",
        "paper_figures",
        "priors_and_the_gap",
        "reading_a_study",
        "your_own_pair",
    }


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_has_no_outputs_and_starts_with_parameters(file: Path) -> None:
    cells: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert [cell["metadata"].get("tags") for cell in code] == [["parameters"]] + [None] * (len(code) - 1)
    assert cells[0]["cell_type"] == "markdown"
    assert all(sum(map(len, cell["source"])) < 1600 for cell in cells)
