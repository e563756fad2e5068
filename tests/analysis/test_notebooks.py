"""Notebooks are committed with outputs that come from their code, small and without paths of a machine."""

import json
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from helpers import DEFAULT, needs_default_study

from pyrovae import open_results

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "analysis/notebooks").glob("*.ipynb"))
#: Parameters with which notebooks that train take seconds.
SMALL: dict[str, dict[str, Any]] = {
    "diagnosing_a_guide": {"images": [0, 1], "draws": 25},
    "priors_and_the_gap": {
        "settings": {
            "prior": ["standard_normal", "vamp"], "beta": [0.1, 1], "depth": 1, "seed": [0, 1], "width": 16,
            "steps": 20, "train_images": 512, "test_images": 256, "measure.images": 256, "measure.outer": 256,
        }
    },
    "reading_a_study": {},
    "your_own_pair": {"steps": 200, "images": 512},
}  # fmt: skip
#: A verdict, as it is printed.
VERDICT = re.compile(
    r"^(?:supported|contradicted|undecided|no meaningful difference): (?P<finding>.+): "
    r".*(?P<direction>falls|rises|lower|higher|closer|farther).* by (?P<effect>[\d.]+) ± (?P<half_width>[\d.]+)",
    re.MULTILINE,
)


def test_all_documented_notebooks_exist() -> None:
    assert {file.stem for file in NOTEBOOKS} == {
        "diagnosing_a_guide",
        "paper_figures",
        "priors_and_the_gap",
        "reading_a_study",
        "your_own_pair",
    }


def read(file: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return notebook


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(notebook: dict[str, Any]) -> str:
    return "".join("".join(output.get("text", "")) for cell in code_cells(notebook) for output in cell["outputs"])


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_starts_with_text_and_parameters(file: Path) -> None:
    cells = read(file)["cells"]
    assert [cell["metadata"].get("tags") for cell in code_cells(read(file))][:2] == [["parameters"], None]
    assert cells[0]["cell_type"] == "markdown"
    assert all(sum(map(len, cell["source"])) < 1600 for cell in cells)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_outputs_come_from_the_code(file: Path) -> None:
    notebook = read(file)
    code = "\0".join("".join(cell["source"]) for cell in code_cells(notebook))
    assert notebook["metadata"]["pyrovae"]["code"] == sha256(code.encode()).hexdigest()[:16]
    assert notebook["metadata"]["pyrovae"]["versions"].startswith("pyrovae ")
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} >= {"display_data"}
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not re.findall(r"/(?:home|root|tmp|Users|work)/", json.dumps(outputs))
    assert file.stat().st_size < 400_000


@pytest.mark.pages
@needs_default_study
@pytest.mark.parametrize(
    "file", [each for each in NOTEBOOKS if each.stem != "paper_figures"], ids=lambda file: file.stem
)
def test_notebook_runs(file: Path, tmp_path: Path) -> None:
    folder = {"folder": str(tmp_path / "study")} if "settings" in SMALL[file.stem] else {}
    (tmp_path / "small.json").write_text(json.dumps(SMALL[file.stem] | folder))
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(file.parent)]
    subprocess.run([*command, "-f", str(tmp_path / "small.json"), str(file), str(tmp_path / file.name)], check=True)


@pytest.mark.pages
def test_notebook_on_the_papers_figures_prints_what_is_committed() -> None:
    command = [sys.executable, str(ROOT / "analysis/notebooks/execute.py"), "--check", "paper_figures"]
    subprocess.run(command, check=True)


@needs_default_study
def test_findings_of_the_reading_notebook_are_those_of_the_default_study() -> None:
    shown, now = (
        {without_numbers(each["finding"]): each for each in VERDICT.finditer(text)}
        for text in (
            printed(read(ROOT / "analysis/notebooks/reading_a_study.ipynb")),
            "\n".join(map(str, open_results(DEFAULT).findings())),
        )
    )
    assert len(shown) >= 8
    for finding, verdict in shown.items():
        assert abs(effect(verdict) - effect(now[finding])) <= half_width(verdict) + half_width(now[finding]), finding


def without_numbers(text: str) -> str:
    return re.sub(r"(?<!depth )[\d.]+", "", text)


def effect(verdict: re.Match[str]) -> float:
    return float(verdict["effect"]) * (-1 if verdict["direction"] in ("falls", "lower", "closer") else 1)


def half_width(verdict: re.Match[str]) -> float:
    return float(verdict["half_width"])
