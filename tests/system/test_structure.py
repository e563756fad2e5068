"""The architecture: what may import what, and what is installed."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the top down; a layer imports what stands below it, or beside it.
LAYERS = (
    {"cli"},
    {"experiment", "diagnose"},
    {"cluster"},
    {"checks", "swap", "reporting", "work"},
    {"build"},
    {"results"},
    {"tree"},
    {"details"},
    {"train", "evaluate", "analysis"},
    {"measures"},
    {"lockstep", "estimators", "progress"},
    {"pair", "study", "data", "streams", "precision", "checkpoint", "hdf"},
    {"handlers"},
    {"adam", "distributions", "files", "errors", "machine", "networks"},
)
HEIGHT = {name: -number for number, names in enumerate(LAYERS) for name in names}


def _imports(file: Path) -> set[str]:
    """Parts of pyrovae that a file imports when it is loaded or run."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "pyrovae":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyrovae."):
            names.add(str(node.module).split(".")[1])
    return names


def test_imports_run_downwards() -> None:
    files = [
        file for file in (ROOT / "pyrovae").rglob("*.py") if file.name != "__init__.py" or file.parent.name == "data"
    ]
    parts = {file: file.relative_to(ROOT / "pyrovae").parts[0].removesuffix(".py") for file in files}
    parts |= dict.fromkeys((ROOT / "analysis").glob("*.py"), "analysis")
    assert {"cli", "build", "data", "analysis"} <= set(parts.values())
    for file, part in parts.items():
        for name in _imports(file) & HEIGHT.keys():
            assert HEIGHT[name] <= HEIGHT[part], f"{file.name} imports {name}"


@pytest.mark.parametrize("folder", ["models", "guides"])
def test_models_and_guides_know_nothing_of_the_engine(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        assert _imports(file) <= {folder, "networks"}, file.name


def test_only_build_knows_models_and_guides() -> None:
    knowing = {file.name for file in (ROOT / "pyrovae").rglob("*.py") if _imports(file) & {"models", "guides"}}
    assert knowing == {"build.py"}


def test_help_needs_no_torch() -> None:
    code = "import sys, pyrovae.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wheel_holds_pyrovae_alone_and_runs_from_an_empty_folder(tmp_path: Path) -> None:
    # A copy, because what an earlier build left beside the sources would get into the wheel.
    copy = tmp_path / "copy"
    for name in ("pyrovae", "models", "guides", "analysis"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"pyrovae"}
    folders = ("models", "guides", "analysis")
    expected = {f"pyrovae/{f.relative_to(ROOT)}" for folder in folders for f in (ROOT / folder).rglob("*.py")}
    expected.remove("pyrovae/analysis/docs/conf.py")
    expected |= {str(f.relative_to(ROOT)) for f in (ROOT / "pyrovae").rglob("*") if f.suffix in (".py", ".yaml")}
    expected |= {"pyrovae/analysis/report/report.html", "pyrovae/analysis/report/references.bib"}
    assert names - {"pyrovae/py.typed"} == expected
    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([*command[:3], "install", "-q", "--no-deps", "--target", str(target), str(wheel)], check=True)
    code = "import pyrovae; print(pyrovae.__file__); from pyrovae.cli import main; main()"
    small = ("steps=2", "width=8", "depth=1", "beta=1", "seed=0", "train_images=64", "test_images=64")
    arguments = ["run", *(word for setting in small for word in ("--set", setting))]
    environment = os.environ | {"PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=empty, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(target))
    assert (empty / "runs/quick/figures/rate_distortion.png").exists()
