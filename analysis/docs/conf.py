"""Builds the documentation: sphinx-build -W --keep-going -n -b html analysis/docs build/docs."""

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from docutils import nodes
from pydantic import BaseModel
from sphinx import addnodes
from typer.main import get_command
from typer.testing import CliRunner

import pyrovae
from pyrovae import open_results, parts
from pyrovae.analysis.figures import captions
from pyrovae.analysis.report import paper
from pyrovae.cli import app as commands
from pyrovae.store.layout import kept
from pyrovae.study import Measure, Run, Study

project = "pyrovae"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx_design"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "pyrovae"
html_show_copyright = False
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "off"  # notebooks are committed with their outputs
myst_heading_anchors = 3
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autosummary_context = {"exported": ", ".join(pyrovae.__all__)}
napoleon_use_ivar = True
# Single backticks hold code, or the name of an object, which becomes a link where there is such an object.
default_role = "py:obj"
nitpick_ignore_regex = [
    # Code that is no object, and types of other packages, whose inventories would need a network.
    ("py:.*", r"(?!pyrovae\.).*"),
    # Modules that are not on the reference pages.
    ("py:(class|obj|func)", r"pyrovae\.(measures|parts|programs|runner|store|study|system|training)\..*"),
]


#: The study of a figure in the gallery, if it is not the default one: its folder, and the command that made it.
OTHER_STUDIES = {
    "gap_decomposition": ("runs/priors", "pyrovae run priors"),
    **dict.fromkeys(
        ("generalization_gap", "fixed_decoder_curve"),
        (
            "runs/gaps",
            "pyrovae run quick --set 'measure.also=[generalization_gap,fixed_decoder_curve]' "
            "--set measure.gap_images=256 --out runs/gaps",
        ),
    ),
    "population": (
        "runs/population",
        "pyrovae run quick --set validation_images=4096 --set 'measure.also=[population]' --out runs/population",
    ),
    "weight_of_rate": (
        "runs/at-rate",
        "pyrovae run quick --set beta=1 --set target_rate=[10,20] --set learning_rate_schedule=tail --out runs/at-rate",
    ),
    "pair_plot": ("runs/linear", "pyrovae run linear"),
    "latent_plane": (
        "runs/plane",
        "pyrovae run quick --set latent_size=2 --set depth=1 --set beta=[0.1,1] --set seed=0 --set steps=1500 "
        "--set prior=[standard_normal,vamp] --set train_images=4096 --set test_images=1024 --out runs/plane",
    ),
}


#: Words in which a term of the glossary appears in running text. The others are its entries without their symbols.
WORDS = {
    "distortion D": r"distortions?",
    "rate R": r"rate",
    "inference marginal q(z)": r"inference marginal|aggregate posterior",
    "mutual information I": r"mutual information",
    "saturated": r"saturat(?:ed|es|ion)",
    "prior gap G": r"prior gap",
    "code, encoding": r"codes?|encodings?",
    "active unit": r"active units?",
    "prior swap": r"prior swaps?",
    "distance between images": r"nearest (?:training )?(?:image|one)",
    "run": r"runs",
    "training set": r"training sets?",
    "cohort": r"cohorts?",
    "axis": r"axis|axes",
    "finding": r"findings?",
    "verdict": r"verdicts?",
    "record": r"records",
}


def setup(app: Any) -> None:
    app.connect("config-inited", _write_pages)
    app.connect("doctree-read", _link_terms)
    app.connect("autodoc-process-signature", _short_signature)


def _short_signature(app: Any, what: str, name: str, thing: Any, *_: Any) -> tuple[str, str] | None:
    """The fields of a settings class have a table of their own."""
    return ("(**settings)", "") if isinstance(thing, type) and issubclass(thing, BaseModel) else None


def _link_terms(app: Any, tree: nodes.document) -> None:
    """Links the first use of each term in the text of a page to the glossary."""
    page = app.env.docname
    if page in ("index", "glossary") or page.startswith("generated/pyrovae"):
        return
    left = {
        term: re.compile(rf"(?<![\w/-])(?:{WORDS.get(term, re.escape(term))})(?![\w/=-])")
        for term in _terms(app.srcdir)
    }
    for text in list(tree.findall(nodes.Text)):
        if not isinstance(text.parent, nodes.paragraph | nodes.entry | nodes.emphasis):
            continue
        found = {term: match for term, pattern in left.items() if (match := pattern.search(text))}
        parts, done = [], 0
        for term, match in sorted(found.items(), key=lambda each: each[1].start()):
            if match.start() >= done:
                link = addnodes.pending_xref("", refdomain="std", reftype="term", reftarget=term, refdoc=page)
                link += nodes.inline("", match[0], classes=["term"])
                parts += [nodes.Text(text[done : match.start()]), link]
                done = match.end()
                del left[term]
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[done:])])


def _terms(folder: Path) -> list[str]:
    """The terms of the glossary."""
    lines = (Path(folder) / "glossary.md").read_text(encoding="utf-8").splitlines()
    return [term for term, text in pairwise(lines) if text.startswith("  ") and not term.startswith(" ")]


def _write_pages(app: Any, config: Any) -> None:
    """Pages made from code: settings, commands, findings of kept results, and figures; and the notebooks."""
    folder = Path(app.srcdir) / "generated"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in (Path(app.srcdir).parent / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, folder)
    (folder / "settings.md").write_text("\n".join(_settings()), encoding="utf-8")
    (folder / "paper.md").write_text("\n".join(_paper(folder)), encoding="utf-8")
    (folder / "which-prior.md").write_text("\n".join(_which_prior()), encoding="utf-8")
    (folder / "gallery.md").write_text("\n".join(_gallery()), encoding="utf-8")
    (folder / "commands.md").write_text("\n".join(_commands()), encoding="utf-8")


def _settings() -> Iterator[str]:
    yield "# Settings of a study\n"
    yield "For a study file, or for `--set`. A list makes a setting of a run or of a component an axis of the grid."
    for title, model, prefix in (("Run", Run, ""), ("Measures", Measure, "measure."), ("Study", Study, "")):
        schemas = model.model_json_schema()["properties"]
        yield f"\n## {title}\n\n| setting | valid values | default | |\n|---|---|---|---|"
        for name, field in model.model_fields.items():
            if name not in ("base", "axes", "measure"):
                valid = (
                    f"a component, see [{name}](#{name})"
                    if name in filter(parts.names, parts.SHIPPED)
                    else _valid(schemas[name])
                )
                yield f"| `{prefix}{name}` | {valid} | {_default(field)} | {_cell(field.description or '')} |"
    yield "\n## Components\n"
    yield "As `pyrovae parts` lists them."
    for kind in filter(parts.names, parts.SHIPPED):
        yield f"\n### {kind}\n\n| name | settings | |\n|---|---|---|"
        for name in sorted(parts.names(kind)):
            yield f"| `{name}` | {' | '.join(map(_cell, parts.description(kind, name)))} |"


def _paper(folder: Path) -> Iterator[str]:
    yield "# The paper, finding by finding\n"
    yield (
        "What the paper found, in our words, and what the [kept results](../results.md) of pyrovae say. OOD is the "
        "checkerboard split, ID the random one; deep is three hidden layers, shallow one. Effects have intervals of "
        "95%, and [verdicts](../verdicts.md) hold jointly over all findings of a study. This page is made from kept "
        "results, which these commands trained:\n"
    )
    studies = {name: open_results(name) for name in kept() if name.startswith("paper")}
    for name, results in studies.items():
        status = results.tree["runs"]["status"].values
        done = f"{(status == 'done').sum()} of {status.size} runs are done"
        yield f"- `{name}`: `{results.tree.attrs['command']}`; {done}, at {results.study.base.steps:,} steps."
    for name, results in studies.items():
        (picture,) = results.save_figures(folder / name, "rate_distortion", width=6.4, formats=["png"])
        yield f"\n![The rate–distortion plane of {name}]({picture.relative_to(folder)})"
    yield "\n| the paper | obtained | shown by |\n|---|---|---|"
    for text, obtained, command in paper.rows(studies):
        yield f"| {_cell(text)} | {_cell(obtained)} | {command} |"
    yield "\nWhich priors help, the paper leaves open: see [priors and the prior gap](../priors.md)."


def _which_prior() -> Iterator[str]:
    yield "# Which prior generalizes: all results\n"
    yield "The studies of priors behind [the summary](../priors.md#which-prior-generalizes-best), from kept results.\n"
    for name in sorted(name for name in kept() if name.startswith("which-prior")):
        yield f"## {name}\n\n{open_results(name).study.description} `pyrovae run {name}` trains it.\n"
        for part in ([], ["best"], ["information"], ["caveats"]):
            words = ["show", name, *part]
            yield f"```sh\npyrovae {' '.join(words)}\n```\n\n```text\n{_printed(*words)}\n```\n"


def _printed(*words: str) -> str:
    """What a command prints."""
    shown = CliRunner().invoke(commands, words, prog_name="pyrovae", env={"COLUMNS": "100", "NO_COLOR": "1"})
    return "\n".join(line.rstrip() for line in shown.stdout.strip().splitlines())


def _gallery() -> Iterator[str]:
    yield "# Gallery\n"
    yield (
        "Every figure that a study can have, with the commands and the lines of Python that make it. `pyrovae run` "
        "draws them into the folder `figures` and into the report. For a paper, `pyrovae figures` writes PDF files of "
        "any width, with text of 7 to 9 points and embedded fonts; `--dark` draws light on dark, for slides. In "
        "Python, `plot` takes `ax=`, your own axes. In all figures, a colour is a setting of the study, train is "
        "dashed, and test is solid. Shapes and line styles carry what colours do, for readers who cannot tell them "
        "apart.\n"
    )
    for name, caption in captions().items():
        folder, command = OTHER_STUDIES.get(name, ("runs/quick", "pyrovae run"))
        picture = f"![{name}](../{name.replace('_', '-')}.png)"
        yield f"\n## {name.replace('_', ' ').capitalize()}\n\n{picture}\n\n{_cell(caption)}\n"
        yield f"```sh\n{command}\npyrovae figures {folder} {name} --width 3.3\n```\n"
        yield f'```python\nimport pyrovae\n\nresults = pyrovae.open_results("{folder}")\nresults.plot("{name}")\n```'


def _cell(text: str) -> str:
    """Text in a table of Markdown."""
    return "".join(f"\\{each}" if each in "|*_[]<>^~" else each for each in text)


def _valid(schema: dict[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(map(_valid, schema["anyOf"]))
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in values)
    kind = {"null": "`null`", "string": "text", "array": "a list of text"}.get(schema["type"], schema["type"])
    limits = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    return ", ".join([kind, *(f"{sign} {_bound(schema[name])}" for name, sign in limits if name in schema)])


def _bound(value: float) -> str:
    return {10**9: "10⁹", 10**30: "10³⁰", 2**63: "2⁶³"}.get(int(value), f"{value:g}")


def _default(field: Any) -> str:
    if field.is_required():
        return "the name of the file"
    return "" if field.default in ("", ()) else f"`{'null' if field.default is None else field.default}`"


def _commands() -> Iterator[str]:
    yield "# The command line\n"
    for name in ["", *get_command(commands).commands]:  # type: ignore[attr-defined]
        words = [*([name] if name else []), "--help"]
        yield f"\n## {' '.join(['pyrovae', *words[:-1]])}\n\n```text\n{_printed(*words)}\n```"
