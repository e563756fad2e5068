"""Every command and every code block of the documentation runs, page by page and in order, at a small size."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import pytest
import torch
from distributed import Client, LocalCluster
from helpers import DEFAULT, needs_default_study
from matplotlib import pyplot

import pyrovae
from pyrovae import Study, open_results
from pyrovae.analysis.report import tables
from pyrovae.cli import main
from pyrovae.data import Source, torchvision_datasets
from pyrovae.estimators import Annealing, Optimisation
from pyrovae.runner import fit
from pyrovae.runner.diagnose import diagnose_run
from pyrovae.study import shipped

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "analysis/docs").glob("*.md"))]
FENCE = re.compile(r"^\s*```(\S+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(sh|python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: The first line of a block that is a file, such as "# mine.py", after "#!" if it is a script.
NAMED = re.compile(r"(?:#!.*\n)?# ([\w-]+\.\w+)\n")
LINK = re.compile(r"\]\(([^)\s#]+)")
#: A finding in a terminal.
FOUND = re.compile(
    r"(?P<outcome>supported|contradicted|no meaningful difference|undecided) +(?P<comparison>.*) by (?P<effect>[\d.]+)"
    r" ± (?P<half_width>[\d.]+) .*"
)
#: Studies that take long, or need real data.
EXPENSIVE = frozenset(shipped().keys() - {"quick"})

#: Settings that make every study small.
SMALL: dict[str, Any] = {
    "seed": 0,
    "depth": 1,
    "beta": [0.1, 1],
    "steps": 2,
    "width": 8,
    "batch_size": 16,
    "train_images": 256,
    "test_images": 64,
    "measure.images": 64,
    "measure.outer": 16,
    "measure.likelihood_images": 8,
    "measure.particles": 8,
    "measure.reconstructions": 8,
    "measure.probe": 16,
    "measure.points": 2,
    "measure.gap_images": 8,
    "measure.gap_temperatures": 2,
}
#: The exceptions: settings by which a page selects runs of a study in its own folder.
VARIED = {
    "beta": re.compile(r"\bbeta(: \[|=0\.01,)"),
    "depth": re.compile(r"\bdepth=\[|,depth="),
    "train_images": re.compile(r"\btrain_images(=|: )\["),
}
#: Components without that setting.
WITHOUT_WIDTH = frozenset({"network=conv_small", "pair=mine:make"})
#: Smaller values of options of `pyrovae evaluate`.
SMALL_OPTIONS = {"--images": "16", "--outer": "16", "--particles": "8"}
#: Scripts in place of programs. Calls of pyrovae are recorded, one word per line.
PROGRAMS = {
    "pyrovae": 'printf "%s\\n" "$@" --end-- >>"$CALLS"',
    "python": "",
    "python3": "",
    "jupyter": "",
    "dask": "touch scheduler.json",
    "rsync": "",
    "ssh": "",
    # An array of two tasks, one after the other.
    "sbatch": 'for task in 0 1; do SLURM_ARRAY_TASK_ID=$task SLURM_CPUS_PER_TASK=1 bash -eu "$1"; done',
}


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@contextmanager
def _threads(address: str) -> Iterator[Client]:
    """A cluster inside this process, whatever the address."""
    assert address == "local" or address.endswith(".json")
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def small_and_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, and neither tracing nor long annealing."""
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setitem(diagnose_run.__kwdefaults__, "annealing", Annealing(5, 2))
    monkeypatch.setitem(diagnose_run.__kwdefaults__, "optimisation", Optimisation(5))
    monkeypatch.setattr("pyrovae.runner.diagnose.CHECKED", 16)
    one_run, run_study = fit._run, Study.run
    monkeypatch.setattr(fit, "_run", lambda settings: one_run(settings | {"steps": 2, "batch_size": 16}))
    few = {name: value for name, value in SMALL.items() if name.startswith("measure.")} | {"steps": 2}
    monkeypatch.setattr(Study, "run", lambda self, *out, **options: run_study(self.replace(**few), *out, **options))
    monkeypatch.setattr("pyrovae.training.trainer.Training._modes", lambda *_: ["sequential"])
    monkeypatch.setattr("pyrovae.cli.TEMPERATURES", 5)
    monkeypatch.setattr("pyrovae.runner.cluster.dispatch.connected", _threads)
    yield folder
    pyro.clear_param_store()
    pyplot.close("all")
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.mark.pages
@pytest.mark.filterwarnings("ignore:log weights or log likelihoods")  # pairs are hardly trained here
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_code_of_a_page_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setattr(torchvision_datasets, name, _digits)
    _follow(page)


@pytest.mark.real
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(f"pyrovae run {name}" in _text(page) for name in EXPENSIVE)],
    ids=lambda page: page.stem,
)
def test_commands_and_code_of_a_page_run_with_real_data(page: Path) -> None:
    _follow(page, real=True)


@pytest.mark.pages
def test_pages_become_a_site_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    subprocess.run([*command, str(ROOT / "analysis/docs"), str(tmp_path / "site")], check=True)


def test_links_of_the_readme_lead_to_files() -> None:
    """Sphinx checks those of the other pages."""
    links = [link for link in LINK.findall(_text(ROOT / "README.md")) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@needs_default_study
def test_readme_states_what_the_default_study_finds() -> None:
    """Another kind of CPU may change numbers within their errors, and what can just be decided."""
    stated = [match for line in _text(ROOT / "README.md").splitlines() if (match := FOUND.fullmatch(line))]
    verdicts = open_results(DEFAULT).findings()
    for match, verdict in zip(stated, verdicts, strict=True):
        (stated_of, stated_at), (found_of, found_at) = map(_saturation, (match["comparison"], verdict.summary))
        assert found_of.startswith(f"{stated_of} by "), match[0]
        assert verdict.outcome == match["outcome"] or "undecided" in (verdict.outcome, match["outcome"]), match[0]
        effect, half_width = verdict.contrast.effect, float(match["half_width"])
        near = abs(abs(effect.estimate) - float(match["effect"])) <= max(half_width, effect.half_width)
        assert near or stated_at != found_at, match[0]


def _saturation(text: str) -> tuple[str, str]:
    """A comparison, and at which β it is made because I is saturated there, which rounding may change."""
    found = re.search(r" at β ≤ [\d.]+", text)
    return (text, "") if found is None else (text.replace(found[0], ""), found[0])


def test_readme_states_what_the_kept_results_show() -> None:
    text = " ".join(_text(ROOT / "README.md").split())
    stated = re.search(r"with ([\d.]+) nats against ([\d.]+), and .*? with ([\d.]+) against ([\d.]+)\. ", text)
    assert stated is not None
    data = open_results("paper-slice").tree["rate_distortion"]["distortion"].sel(split="test").mean("seed")
    numbers = [data.sel(beta=beta, depth=depth).item() for beta in (0.01, 1) for depth in (3, 1)]
    assert list(stated.groups()) == [f"{number:.1f}" for number in numbers]
    effects = re.findall(r"[\d.]+ ± [\d.]*\d", text[stated.start() : text.index("The intervals are")])
    assert len(effects) == 5
    summaries = " ".join(verdict.summary for verdict in open_results("paper-slice").findings())
    assert [each for each in effects if each not in summaries] == []


#: By study, how many numbers with errors the page on priors states.
KEPT = {
    "interventions": 9,
    "ladder": 18,
    "ladder-at-rate": 12,
    "latent": 6,
    "mnist-published": 10,
    "which-prior": 10,
    "which-prior-at-rate": 12,
    "which-prior-fashion": 8,
    "which-prior-mnist": 7,
}


@pytest.mark.parametrize("name", KEPT)
def test_page_on_priors_states_what_the_kept_results_show(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    sections = re.split("^##+ ", _text(ROOT / "analysis/docs/priors.md"), flags=re.MULTILINE)
    (section,) = (each for each in sections if f"pyrovae run {name}\n" in each)
    stated = re.findall(r"[\d.]+ ± [\d.]*\d", section)
    with mock.patch.object(sys, "argv", ["pyrovae", "show", name, "--all"]), pytest.raises(SystemExit):
        main()
    evaluations = open_results(name).evaluations.values()
    later = [str(verdict) for each in evaluations for verdict in each.findings()]
    numbers = [table for each in evaluations for table in tables.measured(each.tree).values()]
    cells = [str(cell) for table in numbers for column in table.columns for cell in column.cells]
    shown = "\n".join([capsys.readouterr().out, *later, *cells])
    assert len(stated) == KEPT[name]
    assert [each for each in stated if each not in shown] == []


def test_files_named_in_contributing_exist() -> None:
    names = re.findall(r"`([\w.]+/[\w./]*)`", _text(ROOT / "CONTRIBUTING.md"))
    assert len(names) > 20
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_public_name_is_on_its_page() -> None:
    page = _text(ROOT / "analysis/docs/api.md")
    assert [name for name in pyrovae.__all__ if not re.search(rf"\*\*`{name}\b", page)] == []
    assert [name for name in pyrovae.__all__ if name not in dir(pyrovae) or not getattr(pyrovae, name).__doc__] == []


def _digits() -> Source:
    """As many images as MNIST has, of ten classes."""
    images = torch.randint(256, (100, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(70_000)
    return Source("digits", 70_000, lambda rows: images[rows % 100], labels=rows % 10, published=rows < 60_000)


def _follow(page: Path, real: bool = False) -> None:
    """Does what a reader does: writes files, types commands and runs code, in the order of the page.

    Args:
        real: whether to run what trains an expensive study or needs its results, and nothing else; otherwise, such
            studies are planned, and what needs their results is skipped.
    """
    whole, not_run = _text(page), {"text", "{toctree}", "{eval-rst}", "{glossary}"}
    names: dict[str, Any] = {"__name__": "__main__"}
    settings = {key: value for key, value in SMALL.items() if key not in VARIED or not VARIED[key].search(whole)}
    blocks = BLOCK.findall(whole)
    assert [language for language, _ in blocks] == [each for each in FENCE.findall(whole) if each not in not_run]
    for language, text in blocks:
        if named := NAMED.match(text):
            Path(named[1]).write_text(text, encoding="utf-8")
        elif language == "sh":
            for words in _calls(text):
                trains = words[0] == "run" and not EXPENSIVE.isdisjoint(words)
                if real == (trains or _needs_results(words)):
                    _call(words, settings)
                elif trains:
                    _call([*words, "--plan"], settings)
        elif language == "python" and real == _needs_results(text):
            with (
                mock.patch.object(sys, "path", [os.getcwd(), *sys.path]),
                mock.patch.object(Study, "load", _small(Study.load, settings)),
            ):
                exec(compile(text, page.name, "exec"), names)


def _needs_results(text: str | list[str]) -> bool:
    """Whether code, or the words of a command, read the folder of an expensive study."""
    return any(f"runs/{name}" in text for name in EXPENSIVE)


def _calls(commands: str) -> list[list[str]]:
    """The calls of pyrovae in a block of commands, with words split by the shell."""
    programs, calls, activate = Path("../programs"), Path("../calls"), Path(".venv/bin/activate")
    for folder in (programs, activate.parent):
        folder.mkdir(parents=True, exist_ok=True)
    activate.touch()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    calls.write_text("", encoding="utf-8")
    path = f"{programs.resolve()}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "CALLS": str(calls.resolve())}
    subprocess.run(["bash", "-euc", commands], env=environment, check=True)
    return [call.strip("\n").split("\n") for call in calls.read_text(encoding="utf-8").split("--end--\n")[:-1]]


def _call(words: list[str], settings: dict[str, Any]) -> None:
    """Calls the command in this process, which has imported torch already."""
    importlib.invalidate_caches()
    match words[0]:
        case "run":
            less = [word for key, value in _smaller(words, settings).items() for word in ("--set", f"{key}={value}")]
        case "evaluate":
            less = [word for option in SMALL_OPTIONS.keys() & words for word in (option, SMALL_OPTIONS[option])]
            less += ["--chains", "2"] * ("--ais" in words)
        case "diagnose":
            less = ["--chains", "2", "--draws", "10", "--warmup", "10"]
        case _:
            less = []
    words = ["pyrovae", *words, *less]
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.object(sys, "path", list(sys.path)),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert not ended.value.code, " ".join(words)


def _smaller(words: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that make a command small, but let its study grow where it asks for more seeds or steps."""
    known = settings | ({"depth": SMALL["depth"]} if "--out" in words else {})
    known = {key: value for key, value in known.items() if f"{key}=null" not in words}
    if "quick" not in words:
        known.pop("beta", None)
    if "mnist-published" in words:
        known["train_images"] = 512  # as many as pseudo-inputs
    if not WITHOUT_WIDTH.isdisjoint(words):
        del known["width"]
    for axis in ("seed", "beta", "depth"):
        if any(word.startswith(f"{axis}=") for word in words):
            known.pop(axis, None)
    if any(word.startswith("steps=") for word in words):
        known["steps"] += 1
    return known


def _small(load: Callable[..., Study], settings: dict[str, Any]) -> Callable[..., Study]:
    """`Study.load` with small settings, except when it reads a study that has run."""

    def loaded(source: str | Path, *, trust: Any = (), **overrides: Any) -> Study:
        return load(source, trust=trust, **(overrides if trust is None else overrides | settings))

    return loaded
