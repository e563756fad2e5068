"""The command that lists components."""

import subprocess
import sys

import pytest

from pyrovae import parts


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyrovae", "parts", *words], capture_output=True, text=True, check=False
    )


def test_every_component_is_listed_with_its_settings() -> None:
    lines = [line.split() for line in run().stdout.splitlines()]
    first = {words[0] for words in lines if words}
    assert first >= {name for kind in parts.SHIPPED for name in parts.names(kind)}
    assert any(words[:2] == ["mixture", "components=100"] for words in lines)


def test_one_kind_can_be_listed_alone() -> None:
    shown = run("split").stdout
    assert "checkerboard" in shown
    assert "mixture" not in shown


def test_unknown_kind_is_one_line_and_status_two() -> None:
    done = run("pror")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pyrovae: unknown kind of component 'pror'; valid: data, split")
    assert done.stderr.count("\n") == 1


def test_component_that_cannot_be_imported_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_installed", lambda: {"prior.broken": "nowhere:Prior"})
    settings, text = parts.description("prior", "broken")
    assert (settings, text[:52]) == ("", "prior: expected 'broken' to be importable, got Modul")
