"""The command line: parsing and printing only."""

import os
import signal
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pyrovae.errors import InputError

app = typer.Typer(
    help="Rate–distortion and generalization studies of variational autoencoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
)
#: typer names only this error's kinds.
USAGE_ERROR: Any = typer.BadParameter.__base__
Folder = Annotated[Path, typer.Argument(help="The folder of a study.")]


def _look_here(modules: list[str] | None) -> list[str] | None:
    """A module that is trusted may lie in the current folder."""
    if modules:
        sys.path.append(os.getcwd())
    return modules


Trust = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE",
        callback=_look_here,
        help="A module whose code may run, where a study names parts as module:Class.",
    ),
]
#: What annealed importance sampling takes unless it is told otherwise: test images, and steps.
ANNEALED, TEMPERATURES = 16, 200
#: Most images that a guide is held to exact posteriors of: each takes a minute or two.
MOST_ROWS = 1000
STUDY_HELP = "A study that ships (see 'pyrovae studies'), or the path of a YAML file."


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Split(StrEnum):
    TEST = "test"
    TRAIN = "train"


class Compile(StrEnum):
    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


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
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="A Dask scheduler on whose workers the study is run, by its address or its file; 'local' starts one "
            "with workers of this machine. Needs pyrovae[dask].",
        ),
    ] = None,
    trust: Trust = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be done, and stop.")] = False,
) -> None:
    """Run a study, or go on with one that was interrupted.

    Trains every pair of the grid, measures rate and distortion on train and test, and leaves results.nc, details of
    images, checkpoints, figures and report.html in the output folder.

    Examples: 'pyrovae run', 'pyrovae run quick --set steps=3000 --set beta=[0.1,1]', 'pyrovae run mine.yaml --plan'.
    """
    from pyrovae.study.grid import Study

    chosen = Study.load(study, trust=trust or (), **dict(_setting(text) for text in settings or []))
    folder = out or Path("runs") / chosen.name
    from pyrovae.runner import experiment

    _print(f"study {chosen.name}: {chosen.description}")
    for line in experiment.plan(chosen):
        _print(
            f"  cohort {line.label}: {line.runs} runs in lockstep, {line.steps:,} steps, "
            f"{line.train_images:,} training and {line.test_images:,} test images"
        )
        for side, counts in (("training", line.train_classes), ("test", line.test_classes)):
            if counts is not None:
                _print(f"    {side} images of each class: {_counts(counts)}")
        if line.bank is not None:
            _print(
                f"    each training image is held to {line.bank:,} encodings, renewed every {line.refresh:,} steps: "
                f"{line.densities[0]:,} densities a step, {line.densities[1]:,} to measure R and log p(x)"
            )
    if plan:
        return
    try:
        results = experiment.run(chosen, folder, device=device.value, compile=compile.value, scheduler=scheduler)
    except KeyboardInterrupt:
        _print(f"stopped; what was done is in {folder}, and the same command goes on from there")
        raise typer.Exit(130) from None
    _report(results.tree, folder)


@app.command()
def show(
    folder: Folder,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Print instead what made the numbers: code, versions, device, cohort.")
    ] = False,
) -> None:
    """Print the tables and the claims of a study again.

    Examples: 'pyrovae show runs/quick', 'pyrovae show runs/quick --provenance'.
    """
    from pyrovae.analysis.report import tables
    from pyrovae.build import open_results

    tree = open_results(folder).tree
    if provenance:
        for table in tables.provenance(tree):
            _console().print(table, soft_wrap=True)
    else:
        _report(tree, folder)


@app.command()
def report(folder: Folder) -> None:
    """Write report.html and the figures of a study again.

    The report is one file that needs no network: the claims, a rate–distortion plane in which every run can be pointed
    at, tables that sort, the figures, what made the numbers, and what to cite. 'pyrovae run' writes it too.

    Example: 'pyrovae report runs/quick'.
    """
    from pyrovae.runner.reporting import draw_again

    _print(f"report in {draw_again(folder)}")


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="The folders of two studies or more.")],
    out: Annotated[Path, typer.Option(help="Folder for figures and report.html.")] = Path("runs/comparison"),
) -> None:
    """Put several studies in one table and one plane, and say where they differ in set-up.

    Studies may have different grids: one that does not run over an axis stands at the value that its runs share.

    Example: 'pyrovae compare runs/quick runs/mine'.
    """
    from pyrovae.analysis.findings.caveats import caveats
    from pyrovae.analysis.report import comparison, tables
    from pyrovae.runner import reporting

    trees = reporting.compare(folders, out)
    together = comparison.joined(trees)
    console = _console()
    console.print(comparison.differences(trees), soft_wrap=True)
    if caution := comparison.not_comparable(trees):
        _print(caution)
    for table in tables.measured(together):
        console.print(table, soft_wrap=True)
    for name, tree in trees.items():
        for doubt in caveats(tree):
            _print(f"{name}: {doubt}")
    _print(f"report in {out / reporting.REPORT}")


@app.command()
def evaluate(
    folder: Folder,
    images: Annotated[
        int | None,
        typer.Option(help="Images of each split on which D and R are measured, and test images on which log p(x) is."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Draws of z an image.")] = None,
    outer: Annotated[
        int | None,
        typer.Option(help="Images of each split over which I, G and rates under q(z) are averaged."),
    ] = None,
    particles: Annotated[int | None, typer.Option(help="Draws of z an image behind the bound of log p(x).")] = None,
    ais: Annotated[
        bool,
        typer.Option(
            "--ais",
            help="Bound log p(x) by annealed importance sampling too: minutes, where importance weighting takes "
            f"seconds, so on {ANNEALED} test images unless --images says otherwise.",
        ),
    ] = False,
    temperatures: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps of --ais from p(z) to p(z|x): more are tighter.", show_default=str(TEMPERATURES)
        ),
    ] = None,
    chains: Annotated[
        int | None, typer.Option(help="Chains of --ais an image.", show_default="as in the study")
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A prior to swap in: fitted to the encodings, all else stays as trained."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute; auto takes CUDA if there is any.")] = Device.AUTO,
    trust: Trust = None,
) -> None:
    """Measure a finished study again, with more effort or another prior where asked, and without training.

    The tables show the new numbers beside the study's own; both stay in results.nc, the new ones as /evaluation_1,
    /evaluation_2 and so on. The claims and the figures, in figures/evaluation_1 and so on, are of the new numbers. The
    same command again goes on with what was interrupted, and measures nothing twice.

    Examples: 'pyrovae evaluate runs/quick --samples 8 --outer 4096', 'pyrovae evaluate runs/quick --ais', 'pyrovae
    evaluate runs/quick --prior vamp'.
    """
    from pyrovae.runner import experiment
    from pyrovae.store.schema import side_by_side

    asked = {"images": images, "likelihood_images": images, "samples": samples, "outer": outer, "particles": particles}
    if ais:
        asked |= {"temperatures": TEMPERATURES if temperatures is None else temperatures, "chains": chains}
        asked["likelihood_images"] = ANNEALED if images is None else images
    elif temperatures is not None or chains is not None:
        raise InputError("--temperatures and --chains say how --ais works, which was not asked for: add --ais")
    given = {key: value for key, value in asked.items() if value is not None}
    results, again = experiment.reevaluate(
        folder, prior=prior, device=device.value, trust=trust or (), quiet=False, **given
    )
    name = str(again.name) if prior is None else f"{again.name}, {prior}"
    _report(side_by_side({"before": results.tree, name: again}), folder, again)
    if prior is not None:
        _print(
            f"{prior} is in the place of each run's own prior, fitted to its encodings; D is the same, image by image"
        )


@app.command()
def diagnose(
    folder: Folder,
    select: Annotated[
        str,
        typer.Option(
            metavar="AXIS=VALUE,…",
            help="The run, by a value for each axis of the grid that has several, as in beta=1,depth=3; the first seed "
            "unless one is given.",
        ),
    ] = "",
    images: Annotated[
        str, typer.Option(metavar="ROWS", help="Images, by their rows in the split, as in 0:3 or 0,3,17.")
    ] = "0:3",
    split: Annotated[Split, typer.Option(help="The split that the images are of.")] = Split.TEST,
    chains: Annotated[int, typer.Option(min=2, help="Chains of each image.")] = 4,
    draws: Annotated[int, typer.Option(min=10, help="Draws of each chain.")] = 200,
    warmup: Annotated[int, typer.Option(min=10, help="Steps before these, in which a chain adapts.")] = 200,
    trust: Trust = None,
) -> None:
    """Hold the guide of a trained run to exact posteriors: is q(z|x) any good?

    Draws p(z|x) of a few images by Hamiltonian Monte Carlo (Pyro's NUTS) through the decoder, half of the chains from
    the guide and half from the prior, and sets the guide beside it; splits log p(x) − ELBO into approximation gap and
    amortisation gap; and checks statistics of images drawn from the model. It takes a minute or two an image with
    three hidden layers, and leaves files that ArviZ reads, and figures, in diagnosis_1 and so on.

    Examples: 'pyrovae diagnose runs/quick --select beta=1,depth=3', 'pyrovae diagnose runs/quick --select
    beta=0.01,depth=1,seed=2 --images 0,3,17 --draws 500'.
    """
    chosen = dict(_setting(each, "--select") for each in select.split(",") if each)
    rows = _rows(images)
    from pyrovae.analysis.report import tables
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
    _console().print(tables.diagnosis(found), soft_wrap=True)
    for note in found.notes:
        _print(note)
    _print(f"in {place}: {', '.join(sorted(file.name for file in place.iterdir() if file.suffix != '.svg'))}")


@app.command()
def studies() -> None:
    """List the studies that ship."""
    from pyrovae.study.grid import shipped

    listed = shipped()
    for name, description in listed.items():
        _print(f"{name:{max(map(len, listed))}} {description}")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        _print(f"pyrovae {version('pyrovae')}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    if debug:
        os.environ["PYROVAE_DEBUG"] = "1"


def _setting(text: str, option: str = "--set") -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{option}: expected KEY=VALUE, got '{text}'")
    from pyrovae.study.grid import parsed

    try:
        return key.strip(), parsed(value)
    except ValueError:
        raise InputError(f"{option} {key}: expected a value such as 3, 0.1 or [0.1, 1], got '{value}'") from None


def _rows(text: str) -> list[int]:
    """Rows such as 0:3 or 0,3,17."""
    rows: list[int] = []
    try:
        for part in text.split(","):
            first, colon, end = part.partition(":")
            rows += range(int(first), int(end) if colon else int(first) + 1)[: MOST_ROWS + 1]
    except ValueError:
        raise InputError(f"--images: expected rows such as 0:3 or 0,3,17, got '{text}'") from None
    if len(rows) > MOST_ROWS:
        raise InputError(f"--images: expected at most {MOST_ROWS:,} rows, got '{text}'")
    return rows


def _counts(counts: dict[int, int]) -> str:
    """Images of each class, one number a class where these are few."""
    if len(counts) <= 20:
        return " ".join(f"{label}: {count:,}" for label, count in counts.items())
    return f"{min(counts.values()):,} to {max(counts.values()):,} in {len(counts):,} classes"


def _report(tree: Any, folder: Path, again: Any = None) -> None:
    """Prints the tables of a tree, and of it or of a later measurement the claims and what casts doubt on them."""
    from pyrovae.analysis.findings.caveats import caveats
    from pyrovae.analysis.findings.claims import claims
    from pyrovae.analysis.report import tables
    from pyrovae.runner.reporting import REPORT

    told, figures = (tree, folder / "figures") if again is None else (again, folder / "figures" / str(again.name))
    console = _console()
    for table in (*tables.measured(tree), tables.difficulty(told)):
        console.print(table, soft_wrap=True)
    for line in [*tables.claims(claims(told)), *caveats(told)]:
        _print(line)
    if drawn := sorted(figures.glob("*.png")):
        _print(f"figures in {figures}: {', '.join(figure.name for figure in drawn)}")
    if (folder / REPORT).exists():
        _print(f"report in {folder / REPORT}")


def _console() -> Console:
    """A console for tables: a narrower one would cut digits off."""
    return Console(highlight=False, markup=False, width=max(Console().width, 160))


def _print(text: str) -> None:
    typer.echo(text)


def main() -> None:
    """Runs the command line; what the user can mend is one line on stderr and exit status 2."""
    # Large tensors on large pages, which torch asks the environment about when it makes its first.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # What is asked to stop, by a person or by a cluster, stops in the same way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.showwarning = lambda message, *_: typer.echo(f"pyrovae: {message}", err=True)
    # What a library has to tell its programmers is nothing that a user can mend.
    warnings.simplefilter("ignore", FutureWarning)
    try:
        sys.exit(app(standalone_mode=False))
    except USAGE_ERROR as error:
        # Without a command the message is the help itself.
        typer.echo(error.format_message() if len(sys.argv) == 1 else f"pyrovae: {error.format_message()}", err=True)
        sys.exit(2)
    except typer.Abort:
        typer.echo("pyrovae: stopped; what was finished is kept, and the same command can be given again", err=True)
        sys.exit(130)
    except (InputError, OSError) as error:
        if "PYROVAE_DEBUG" in os.environ:
            raise
        # One line, whatever came from a file or a library.
        text = " ".join(str(error).split()) or type(error).__name__
        typer.echo("pyrovae: " + "".join(each if each.isprintable() else "?" for each in text), err=True)
        sys.exit(2)
