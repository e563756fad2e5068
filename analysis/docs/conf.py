"""Builds the documentation: sphinx-build -W --keep-going -n -b html analysis/docs build/docs."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from typer.main import get_command
from typer.testing import CliRunner

import pyrovae
from pyrovae.cli import app as commands
from pyrovae.study import Measure, Run, Study

project = "pyrovae"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "pyrovae"
html_show_copyright = False
myst_heading_anchors = 3
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autosummary_context = {"exported": ", ".join(pyrovae.__all__)}
napoleon_use_ivar = True
# Single backticks hold code, or the name of an object, which becomes a link where there is such an object.
default_role = "py:obj"
nitpick_ignore_regex = [
    # Code that is no object, and types of other packages, whose documentation is not at hand without a network.
    ("py:.*", r"(?!pyrovae\.).*"),
    # Parts that are not public.
    ("py:class", r"pyrovae\.(evaluate|lockstep|progress|results|train)\.(?!Results).*"),
    # A type variable.
    ("py:class", r"pyrovae\.analysis\.effects\.Cell"),
]


def setup(app: Any) -> None:
    app.connect("config-inited", _write_pages)
    app.connect("autodoc-process-signature", _short_signature)


def _short_signature(app: Any, what: str, name: str, thing: Any, *_: Any) -> tuple[str, str] | None:
    """Settings have a table of their own."""
    return ("(**settings)", "") if isinstance(thing, type) and issubclass(thing, BaseModel) else None


def _write_pages(app: Any, config: Any) -> None:
    """Pages of what docstrings do not hold: the settings of a study, and the help of the commands."""
    folder = Path(app.srcdir) / "generated"
    shutil.rmtree(folder, ignore_errors=True)  # pages of modules that are no more
    folder.mkdir()
    (folder / "settings.md").write_text("\n".join(_settings()), encoding="utf-8")
    (folder / "commands.md").write_text("\n".join(_commands()), encoding="utf-8")


def _settings() -> Iterator[str]:
    yield "# Settings of a study\n"
    yield "As they stand in a study file, or after `--set`. A list makes a setting of a run an axis of the grid.\n"
    for title, model, prefix in (("Run", Run, ""), ("Measures", Measure, "measure."), ("Study", Study, "")):
        yield f"\n## {title}\n\n| setting | default | |\n|---|---|---|"
        for name, field in model.model_fields.items():
            if name not in ("base", "axes", "measure"):
                told = (field.description or "").replace("|", r"\|")
                yield f"| `{prefix}{name}` | {_default(field)} | {told} |"


def _default(field: Any) -> str:
    if field.is_required():
        return "the name of the file"
    return "" if field.default == "" else f"`{'null' if field.default is None else field.default}`"


def _commands() -> Iterator[str]:
    yield "# The command line\n"
    runner = CliRunner()
    for name in ["", *get_command(commands).commands]:  # type: ignore[attr-defined]
        words = [*([name] if name else []), "--help"]
        shown = runner.invoke(commands, words, prog_name="pyrovae", env={"COLUMNS": "100", "NO_COLOR": "1"})
        lines = (line.rstrip() for line in shown.output.strip().splitlines())
        yield "\n".join([f"\n## {' '.join(['pyrovae', *words[:-1]])}\n", "```text", *lines, "```"])
