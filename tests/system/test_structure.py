"""The layout: what the wheel installs, and what may import what."""

import html
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Folders of the checkout, all of which are installed in `pyrovae`.
FOLDERS = ("models", "guides", "analysis")
PIP = (sys.executable, "-m", "pip")
SMALL = ("steps=2", "width=8", "depth=1", "beta=1", "seed=0", "train_images=64", "test_images=64")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy that holds nothing of an earlier build."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    for name in ("pyrovae", *FOLDERS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    _run(*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, copy)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """The folder that the wheel is installed in."""
    site = wheel.parent / "site"
    _run(*PIP, "install", "-q", "--no-deps", "--target", site, wheel)
    return site


def test_wheel_installs_pyrovae_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    code = {file.relative_to(ROOT) for file in (ROOT / "pyrovae").rglob("*") if file.suffix in (".py", ".yaml")}
    code |= {"pyrovae" / file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    code |= {Path("pyrovae/analysis/report", name) for name in ("report.html", "references.bib")}
    code |= {"pyrovae" / file.relative_to(ROOT) for file in (ROOT / "analysis/results").glob("*.nc")}
    code -= {Path("pyrovae/analysis", name) for name in ("docs/conf.py", "notebooks/execute.py")}
    assert names == {*map(str, code), "pyrovae/py.typed"}


@pytest.mark.long
def test_wheel_runs_a_study_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    code = "import pyrovae; print(pyrovae.__file__); from pyrovae.cli import main; main()"
    arguments = ["run", *(word for setting in SMALL for word in ("--set", setting))]
    environment = os.environ | {"PYTHONPATH": str(site)}
    printed = _run(sys.executable, "-c", code, *arguments, cwd=tmp_path, env=environment)
    assert printed.startswith(str(site))
    assert (tmp_path / "runs/quick/figures/rate_distortion.png").exists()


@pytest.mark.long
def test_training_and_measuring_need_no_package_that_draws(tmp_path: Path) -> None:
    """As on a GPU with the wheels of tests/benchmarks/make_wheels.sh."""
    missing = ["PIL", "arviz_base", "arviz_plots", "arviz_stats", "jinja2", "matplotlib", "plotly", "torchvision"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); from pyrovae.cli import main; main()"
    words = ["run", *(word for setting in SMALL for word in ("--set", setting))]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "pyrovae: no figures and no report are drawn: import of matplotlib halted" in done.stderr
    assert "no finding that this study can test" in done.stdout
    assert done.returncode == 0


def test_imports_keep_the_contracts(site: Path) -> None:
    """The contracts are in pyproject.toml."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", ROOT / "pyproject.toml"]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_diagram_shows_imports_that_exist() -> None:
    text = (ROOT / "analysis/docs/architecture.dot").read_text(encoding="utf-8")
    arrows = re.findall(r"(\w+) -> (\w+);", text)
    assert len(arrows) > 15
    assert [arrow for arrow in arrows if not _imports(*arrow)] == []


def test_diagram_is_drawn_from_its_source() -> None:
    source, drawing = (ROOT / "analysis/docs" / f"architecture.{suffix}" for suffix in ("dot", "svg"))
    labels = re.findall(r'label="([^"]+)"', source.read_text(encoding="utf-8"))
    shown = html.unescape(drawing.read_text(encoding="utf-8"))
    assert [line for label in labels for line in label.split(r"\n") if f">{line}<" not in shown] == []
    arrows = re.findall(r"(\w+) -> (\w+);", source.read_text(encoding="utf-8"))
    assert [arrow for arrow in arrows if f"{arrow[0]}->{arrow[1]}" not in shown] == []


def test_pyrovae_imports_in_the_parent_folder_of_the_clone() -> None:
    """There, Python could take the folder of the clone for a namespace package."""
    _run(sys.executable, "-c", "import pyrovae.models, pyrovae.guides, pyrovae.analysis", cwd=ROOT.parent)


def test_help_needs_no_torch() -> None:
    _run(sys.executable, "-c", "import sys, pyrovae.cli; sys.exit('torch' in sys.modules)")


def _imports(importer: str, imported: str) -> bool:
    """Whether a folder or module of pyrovae imports another one."""
    folder = ROOT if importer in FOLDERS else ROOT / "pyrovae"
    files = [*(folder / importer).rglob("*.py"), *folder.glob(f"{importer}.py")]
    statement = re.compile(rf"^ *from pyrovae(\.{imported}\b| import .*\b{imported}\b)", re.MULTILINE)
    return any(statement.search(file.read_text(encoding="utf-8")) for file in files)


def _run(*command: str | Path, **options: object) -> str:
    """What a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)
