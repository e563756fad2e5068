"""The command line: parsing and printing only."""

import io
import os
import re
import signal
import sys
import threading
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pyrovae.analysis.diagnosis.chains import ChainSettings
from pyrovae.errors import InputError
from pyrovae.system import surroundings

if TYPE_CHECKING:
    from pyrovae.store.results import Results

app = typer.Typer(
    help="Rate–distortion and generalization studies of variational autoencoders.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
)
#: Exit status after Ctrl-C.
INTERRUPTED = 130
#: typer names only this error's kinds.
USAGE_ERROR: Any = typer.BadParameter.__base__
Folder = Annotated[Path, typer.Argument(help="The folder of a study.")]
FolderOrName = Annotated[Path, typer.Argument(help="The folder of a study, or the name of one with kept results.")]


def _from_current_folder(modules: list[str] | None) -> list[str] | None:
    """Trusted modules may be in the current folder."""
    if modules:
        sys.path.append(os.getcwd())
    return modules


Trust = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE",
        callback=_from_current_folder,
        help="A module whose code may run, where a study names components as module:Class.",
    ),
]
#: Defaults of annealed importance sampling: test images, and steps.
ANNEALED, TEMPERATURES = 16, 200
#: Most images whose exact posteriors are sampled: each takes a minute or two.
MOST_ROWS = 1000
STUDY_HELP = (
    "A study that ships (see 'pyrovae studies'), the path of a YAML file, or the folder of a study, to continue it."
)


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Split(StrEnum):
    TEST = "test"
    TRAIN = "train"


class ExportFormat(StrEnum):
    CSV = "csv"
    PARQUET = "parquet"
    NETCDF = "netcdf"
    ZARR = "zarr"


class FigureFormat(StrEnum):
    PDF = "pdf"
    PNG = "png"
    SVG = "svg"


class Compile(StrEnum):
    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Matmul(StrEnum):
    AUTO = "auto"
    BLAS = "blas"
    ONEDNN = "onednn"


@app.command("run")
def run_study(
    study: Annotated[str, typer.Argument(help=STUDY_HELP)] = "quick",
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="runs/NAME")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; a list, as in beta=[0.1,1], is an axis."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute; auto takes CUDA if there is any.")] = Device.AUTO,
    compile: Annotated[Compile, typer.Option(help="Whether to compile the training step.")] = Compile.AUTO,
    matmul: Annotated[
        Matmul,
        typer.Option(help="What multiplies float32 matrices on a CPU; auto is the faster one on this machine."),
    ] = Matmul.AUTO,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="A Dask scheduler on whose workers the study is run, by its address or its file; 'local' starts one "
            "with workers of this machine. Needs pyrovae[dask].",
        ),
    ] = None,
    trust: Trust = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be done, without doing it.")] = False,
) -> None:
    """Run a study, or resume one that was interrupted.

    Trains every pair of the grid, measures rate and distortion on train and test, and writes results.nc, values per
    image, checkpoints, figures and report.html to the output folder.

    Examples: 'pyrovae run', 'pyrovae run quick --set steps=3000 --set beta=[0.1,1]', 'pyrovae run mine.yaml --plan'.
    """
    from pyrovae.study import Study

    chosen = Study.load(study, trust=trust or (), **dict(_setting(text) for text in settings or []))
    folder = out or (Path(study) if Path(study).is_dir() else Path("runs") / chosen.name)
    from rich.console import Console

    from pyrovae.analysis.findings import findings
    from pyrovae.analysis.findings.design import prospects
    from pyrovae.runner.estimate import estimate
    from pyrovae.runner.open import open_results
    from pyrovae.runner.plan import lines
    from pyrovae.runner.plan import plan as planned
    from pyrovae.runner.run import run
    from pyrovae.system.execution import Execution

    options: Any = {
        "device": device.value,
        "compile": compile.value,
        "matmul": matmul.value,
        "scheduler": scheduler,
    }
    if plan:
        with Console(stderr=True).status("loading images, and trying a few steps if no earlier run tells their speed"):
            cohorts = planned(chosen, folder, warnings.warn)
            for line in lines(chosen, cohorts):
                _print(line)
            if any(cohort.left for cohort in cohorts):
                for line in estimate(chosen, cohorts, folder, Execution(**options)).lines():
                    _print(line)
        before = findings(open_results(folder)) if (folder / "study.yaml").exists() else ()
        for line in prospects(chosen, before):
            _print(line)
        return
    _report(run(chosen, folder, **options))


@app.command()
def show(
    folder: FolderOrName,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]…",
            help="Parts to print: findings, best, caveats, or a table such as information; unknown names are answered "
            "with those that there are.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Print all findings, tables and caveats.")] = False,
    provenance: Annotated[
        bool,
        typer.Option("--provenance", help="Print instead how the numbers were made: code, versions, device, cohort."),
    ] = False,
) -> None:
    """Print the findings of a study and its rate–distortion plane.

    Where 'pyrovae studies' says that results are kept, the name of the study shows them, without training anything.

    Examples: 'pyrovae show runs/quick', 'pyrovae show runs/quick --all', 'pyrovae show runs/quick information',
    'pyrovae show paper-slice'.
    """
    from pyrovae.analysis.report import terminal
    from pyrovae.analysis.report.provenance import provenance as provenance_tables
    from pyrovae.runner.open import open_results

    results = open_results(folder)
    _say_if_kept(folder)
    if provenance:
        terminal.show(provenance_tables(results.tree))
    elif everything or names:
        known = terminal.everything(results)
        if unknown := [name for name in names or () if name not in known]:
            raise InputError(f"unknown part {unknown[0]!r:.200}; valid: {', '.join(known)}")
        terminal.show(known[name] for name in names or known)
    else:
        _report(results)


@app.command()
def report(folder: FolderOrName) -> None:
    """Draw the figures and report.html of a study again.

    The report is one file that needs no network: findings, an interactive rate–distortion plane, sortable tables,
    figures, provenance and references. 'pyrovae run' writes it too.

    Example: 'pyrovae report runs/quick'.
    """
    from pyrovae.runner.reporting import draw_again

    _say_if_kept(folder)
    _print(f"report in {draw_again(folder)}")


@app.command()
def figures(
    folder: FolderOrName,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]…", help="Figures such as rate_distortion; all that have results by default."),
    ] = None,
    width: Annotated[
        float, typer.Option(min=2, max=40, help="Width in inches: 3.3 for a column of a paper, 6.9 for both.")
    ] = 6.9,
    formats: Annotated[list[FigureFormat], typer.Option("--format", help="May be given several times.")] = [  # noqa: B006
        FigureFormat.PDF
    ],
    dark: Annotated[bool, typer.Option("--dark", help="Light on dark, for slides.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the files.", show_default="DIR/figures/print")] = None,
) -> None:
    """Write figures of a study for a paper or a talk.

    Text has 7 to 9 points at the final size, and fonts are embedded. In a figure narrower than 4.5 inches, panels show
    the β closest to 1 only.

    Examples: 'pyrovae figures runs/quick --width 3.3', 'pyrovae figures paper-slice rate_distortion --format svg'.
    """
    from pyrovae.runner.open import open_results

    results = open_results(folder)
    _say_if_kept(folder)
    place = out or results.folder / "figures" / "print"
    files = results.save_figures(place, *(names or ()), width=width, formats=[str(each) for each in formats], dark=dark)
    _print(f"in {place}: {', '.join(file.name for file in files)}")


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="The folders of two or more studies.")],
    out: Annotated[Path, typer.Option(help="Folder for figures and report.html.")] = Path("runs/comparison"),
    everything: Annotated[bool, typer.Option("--all", help="Print all tables and caveats.")] = False,
) -> None:
    """Compare studies in one table and one plane, and list the settings in which they differ.

    Studies may have different grids: one without an axis is placed at the value that all of its runs share.

    Example: 'pyrovae compare runs/quick runs/mine'.
    """
    from pyrovae.analysis.findings.caveats import caveats
    from pyrovae.analysis.report import comparison, tables, terminal
    from pyrovae.runner import reporting

    _say_if_kept(*folders)
    trees = {name: results.tree for name, results in reporting.compare(folders, out).items()}
    terminal.show([comparison.differences(trees)])
    for caution in comparison.cautions(trees):
        _print(caution)
    joined = comparison.joined(trees)
    doubts = [f"{name}: {each}" for name, tree in trees.items() for each in caveats(tree)]
    if everything:
        terminal.show(tables.measured(joined).values())
        for doubt in doubts:
            _print(doubt)
    else:
        terminal.show(filter(None, [tables.plane(joined)]))
        _print(f"{len(doubts)} caveats and all tables: pyrovae compare {' '.join(map(str, folders))} --all")
    _print(f"report in {out / reporting.REPORT}")


@app.command()
def evaluate(
    folder: Folder,
    images: Annotated[
        int | None,
        typer.Option(help="Images of each split for D and R, and test images for log p(x)."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Draws of z per image.")] = None,
    outer: Annotated[
        int | None,
        typer.Option(help="Images of each split over which I, G and rates under q(z) are averaged."),
    ] = None,
    particles: Annotated[int | None, typer.Option(help="Draws of z per image for the bound of log p(x).")] = None,
    ais: Annotated[
        bool,
        typer.Option(
            "--ais",
            help="Bound log p(x) by annealed importance sampling too, which takes minutes instead of seconds: on "
            f"{ANNEALED} test images unless --images is given.",
        ),
    ] = False,
    temperatures: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps of --ais from p(z) to p(z|x): more are tighter.", show_default=str(TEMPERATURES)
        ),
    ] = None,
    chains: Annotated[
        int | None, typer.Option(help="Chains of --ais per image.", show_default="as in the study")
    ] = None,
    measures: Annotated[
        list[str] | None,
        typer.Option(
            "--measure",
            metavar="NAME|MODULE:FUNCTION",
            help="Apply only this measure, one that ships or one of yours; may be given several times.",
        ),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A prior to swap in, fitted to the frozen encodings; encoder and decoder stay as trained.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the swapped prior, as in prior.components=10, or of the measures, as in samples=8.",
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute; auto takes CUDA if there is any.")] = Device.AUTO,
    trust: Trust = None,
) -> None:
    """Re-evaluate a finished study with more samples, other measures or another prior, without retraining.

    The tables show the numbers that changed next to the study's own. Both stay in the results, the new ones under the
    name of what was asked for, such as /evaluations/prior=vamp; findings and figures (in figures/prior=vamp) use the
    new numbers. The same command again resumes an interrupted evaluation and measures nothing twice.

    Examples: 'pyrovae evaluate runs/quick --samples 8 --outer 4096', 'pyrovae evaluate runs/quick --ais', 'pyrovae
    evaluate runs/quick --prior mixture --set prior.components=10', 'pyrovae evaluate runs/quick --measure
    my_module:my_measure --trust my_module'.
    """
    from pyrovae import parts
    from pyrovae.analysis.report import terminal
    from pyrovae.runner.remeasure import reevaluate
    from pyrovae.store.schema import side_by_side

    asked = {"images": images, "likelihood_images": images, "samples": samples, "outer": outer, "particles": particles}
    if ais:
        asked |= {"temperatures": TEMPERATURES if temperatures is None else temperatures, "chains": chains}
        asked["likelihood_images"] = ANNEALED if images is None else images
    elif temperatures is not None or chains is not None:
        raise InputError("--temperatures and --chains are options of --ais: add --ais")
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    for key, value in (_setting(text) for text in settings or []):
        owner, _, name = key.rpartition(".")
        if owner == "prior" and prior is not None:
            component = parts.parse(prior)
            prior = parts.label(component.name, {**component.settings, name: value})
        elif owner in ("", "measure"):
            given[name] = value
        else:
            raise InputError(f"--set {key}: expected a setting of the measures, or prior.NAME with --prior")
    results, again = reevaluate(
        folder, measures=measures or (), prior=prior, device=device.value, trust=trust or (), quiet=False, **given
    )
    terminal.show(terminal.everything(again, side_by_side({"before": results.tree, "now": again.tree})).values())
    _print(f"the new numbers are in the results as {again.name}")
    if prior is not None:
        _print(f"{prior} replaces the prior of each run, fitted to its encodings; D is unchanged for every image")


@app.command()
def diagnose(
    folder: Folder,
    select: Annotated[
        str,
        typer.Option(
            metavar="AXIS=VALUE,…",
            help="The run: a value for each axis of the grid with several, as in beta=1,depth=3; the first seed by "
            "default.",
        ),
    ] = "",
    images: Annotated[
        str, typer.Option(metavar="ROWS", help="Rows of the images in the split, as in 0:3 or 0,3,17.")
    ] = "0:3",
    split: Annotated[Split, typer.Option(help="The split that the images are from.")] = Split.TEST,
    chains: Annotated[int, typer.Option(min=2, help="Chains per image.")] = ChainSettings.chains,
    draws: Annotated[int, typer.Option(min=10, help="Draws per chain.")] = ChainSettings.draws,
    warmup: Annotated[int, typer.Option(min=10, help="Warm-up steps per chain.")] = ChainSettings.warmup,
    trust: Trust = None,
) -> None:
    """Compare a trained guide q(z|x) with exact posteriors (NUTS).

    Samples p(z|x) of a few images by Hamiltonian Monte Carlo (Pyro's NUTS) through the decoder, half of the chains
    started from the guide and half from the prior; splits log p(x) − ELBO into approximation gap and amortisation gap;
    and runs prior and posterior predictive checks. It takes a minute or two per image with three hidden layers, and
    writes files that ArviZ reads, and figures, to diagnosis_1 and so on.

    Examples: 'pyrovae diagnose runs/quick --select beta=1,depth=3', 'pyrovae diagnose runs/quick --select
    beta=0.01,depth=1,seed=2 --images 0,3,17 --draws 500'.
    """
    chosen = _selected(select)
    rows = _rows(images)
    from pyrovae.analysis.report import tables, terminal
    from pyrovae.runner.diagnose import diagnose_run

    found, place = diagnose_run(
        folder,
        chosen,
        rows,
        split=split.value,
        chains=chains,
        draws=draws,
        warmup=warmup,
        trust=trust or (),
        quiet=False,
    )
    terminal.show([tables.diagnosis(found)])
    for note in found.notes:
        _print(note)
    _print(f"in {place}: {', '.join(sorted(file.name for file in place.iterdir() if file.suffix != '.svg'))}")


@app.command()
def remove(
    folder: Folder,
    select: Annotated[
        str,
        typer.Option(
            metavar="AXIS=VALUE,…",
            help="The runs: a value for some axes of the grid, as in beta=4 or depth=3,seed=2.",
        ),
    ],
) -> None:
    """Take runs out of a study: delete their weights and numbers.

    With one axis, its value leaves the grid. With several, the cells stay, and 'pyrovae run' would train them again.

    Example: 'pyrovae remove runs/quick --select beta=4'.
    """
    from pyrovae.runner.folders import remove as removed

    keys = removed(folder, **_selected(select))
    _print(f"{len(keys)} runs removed from {folder}")


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="The folders of two or more parts of a study.")],
    out: Annotated[Path, typer.Option(help="Folder of the whole study; a study that is there is one of the parts.")],
    prefer: Annotated[
        Path | None,
        typer.Option(help="The part to prefer where parts hold different versions of a run with equally many steps."),
    ] = None,
) -> None:
    """Merge parts of one study that were trained on several machines.

    Where several parts have a run, the one that has done the most steps is taken.

    Example: 'pyrovae merge runs/here runs/there --out runs/quick'.
    """
    from pyrovae.runner.folders import merge as merged

    status = merged(folders, out, prefer).tree["runs"].to_dataset()["status"].values
    _print(f"{(status != 'pending').sum()} of {status.size} runs are in {out}; 'pyrovae show {out}' prints them")


@app.command()
def export(
    folder: FolderOrName,
    to: Annotated[
        ExportFormat | None,
        typer.Option(help="A table of all runs, or the tree of results.", show_default="the suffix of --out, or csv"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file.", show_default="results.csv, export.nc and so on in DIR")
    ] = None,
) -> None:
    """Write the numbers of a study to one file.

    csv and parquet are tables with one row per run and one column per number; netcdf and zarr are the tree of results,
    with all that findings need.
    parquet and zarr need pyrovae[export].

    Example: 'pyrovae export runs/quick --to csv'.
    """
    from pyrovae.runner.folders import export as exported

    _print(f"in {exported(folder, None if to is None else to.value, out)}")


@app.command()
def studies() -> None:
    """List the studies that ship, and say for which of them results are kept."""
    from pyrovae.store.layout import kept
    from pyrovae.study import shipped

    listed = shipped()
    for name, description in listed.items():
        shown = f" Its results are kept: 'pyrovae show {name}'." if name in kept() else ""
        _print(f"{name:{max(map(len, listed))}} {description}{shown}")


@app.command("parts")
def list_parts(
    kind: Annotated[str | None, typer.Argument(help="Only this kind, such as prior.", show_default="all")] = None,
) -> None:
    """List the components that studies can name, with their settings and defaults.

    Set one with '--set components=10', or '--set prior.components=10' where several components have it. Along an axis,
    components may bring their own: '--set "prior=[vamp, mixture(components=10)]"'.

    Examples: 'pyrovae parts', 'pyrovae parts prior'.
    """
    from pyrovae import parts

    if kind is not None and kind not in parts.SHIPPED:
        raise InputError(f"unknown kind of component {kind!r:.200}; valid: {', '.join(parts.SHIPPED)}")
    for each in parts.SHIPPED if kind is None else [kind]:
        table = Table(each, "settings", "", box=None, pad_edge=False)
        for name in sorted(parts.names(each)):
            table.add_row(name, *parts.description(each, name))
        Console(highlight=False, markup=False).print(table, "")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        _print(f"pyrovae {version('pyrovae')}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["PYROVAE_DEBUG"] = "1"


def _setting(text: str, option: str = "--set") -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{option}: expected KEY=VALUE, got '{text:.200}'")
    from pyrovae.study import parse_yaml

    try:
        return key.strip(), parse_yaml(value, comments=False)
    except ValueError as error:
        raise InputError(
            f"{option} {key}: expected a value such as 3, 0.1 or [0.1, 1], got '{value:.200}': {error}"
        ) from None


def _selected(text: str) -> dict[str, Any]:
    """Values along axes, as in beta=1,depth=3; commas in brackets and quotes do not separate them."""
    parts = re.findall(r"""(?:[^,"'(\[]|"[^"]*"|'[^']*'|\([^)]*\)|\[[^]]*\])+""", text)
    return dict(_setting(part, "--select") for part in parts)


def _rows(text: str) -> list[int]:
    """Rows such as 0:3 or 0,3,17."""
    rows: list[int] = []
    try:
        for part in text.split(","):
            first, colon, end = part.partition(":")
            rows += range(int(first), int(end) if colon else int(first) + 1)[: MOST_ROWS + 1]
    except ValueError:
        raise InputError(f"--images: expected rows such as 0:3 or 0,3,17, got '{text:.200}'") from None
    if len(rows) > MOST_ROWS:
        raise InputError(f"--images: expected at most {MOST_ROWS:,} rows, got '{text:.200}'")
    return rows


def _report(results: "Results") -> None:
    """Prints what a study found in short, and where the rest is."""
    from pyrovae.analysis.findings.caveats import caveats
    from pyrovae.analysis.report import terminal
    from pyrovae.runner.reporting import REPORT

    terminal.show(terminal.summary(results))
    number = len(caveats(results.tree))
    _print(f"{number} caveats and all tables: pyrovae show {results.folder} --all")
    if (results.folder / REPORT).exists():
        _print(f"report with figures: {results.folder / REPORT}")


def _say_if_kept(*folders: Path) -> None:
    """Says which results are those that are kept with the package."""
    from pyrovae.store.layout import kept_for

    for folder in filter(kept_for, folders):
        print(
            f"pyrovae: {folder}: no folder of this name holds a study, so these are its kept results", file=sys.stderr
        )


def _print(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Runs the command line; an error that the user can fix is one line on stderr and exit status 2."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        code = _main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # while the interpreter ends
    if code == INTERRUPTED:
        print("pyrovae: stopped; finished work is kept, and the same command continues it", file=sys.stderr)
    sys.exit(code)


def _interrupt(*_: object) -> None:
    """Raises KeyboardInterrupt, again if code that ignores all errors has swallowed it, as some do at import."""
    insist = threading.Timer(1.0, _insist)
    insist.daemon = True
    insist.start()
    raise KeyboardInterrupt


def _insist() -> None:
    handled = sys._current_exceptions().get(threading.main_thread().ident or 0)
    if handled in (None, (None, None, None)):  # until Python 3.11, a thread that handles none has three of them
        os.kill(os.getpid(), signal.SIGINT)


def _main() -> int:
    """Runs the command line, and returns its exit status."""
    # Large pages for large tensors: torch reads this when it allocates its first tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what the terminal's encoding lacks
    warnings.showwarning = lambda message, *_: print(f"pyrovae: {message}", file=sys.stderr)
    warnings.simplefilter("ignore", FutureWarning)
    os.environ["MPLBACKEND"] = "agg"
    surroundings.prepare()
    try:
        return int(app(standalone_mode=False) or 0)
    except USAGE_ERROR as error:  # without a command, its message is the help
        print(error.format_message() if len(sys.argv) == 1 else f"pyrovae: {error.format_message()}", file=sys.stderr)
        return 2
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        expected = isinstance(error, InputError | OSError)
        if "PYROVAE_DEBUG" in os.environ or not (expected or _out_of_memory(error)):
            raise
        text = " ".join((str(error) if expected else f"out of memory: {error}".partition("\n")[0]).split())
        print("pyrovae: " + "".join(each if each.isprintable() else "?" for each in text), file=sys.stderr)
        return 2


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, perhaps before torch was imported."""
    if isinstance(error, MemoryError) or "failed to map segment" in str(error):
        return True
    from pyrovae.system.memory import is_out_of_memory

    return is_out_of_memory(error)


if __name__ == "__main__":
    main()
