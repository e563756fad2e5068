"""Inputs that fuzzers found are read or refused; the fuzzers themselves run on demand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import readers

FOLDER = Path(__file__).parent / "cases"
CASES = sorted(file.relative_to(FOLDER) for file in FOLDER.rglob("*") if file.is_file())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_input_found_by_fuzzing_is_read_or_refused(case: Path, tmp_path: Path) -> None:
    readers.read(case.parent.name, (FOLDER / case).read_bytes(), tmp_path)


@pytest.mark.parametrize("name", readers.READERS)
def test_examples_of_the_fuzzers_are_valid(name: str, tmp_path: Path) -> None:
    for example in readers.READERS[name].examples():
        readers.READERS[name].read(example, tmp_path)


def test_forbidden_actions_of_readers_are_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_outside(content: bytes, folder: Path) -> None:
        (folder.parent / "outside").write_bytes(content)

    def start_process(content: bytes, folder: Path) -> None:
        subprocess.run(["true"])

    for read in (write_outside, start_process):
        monkeypatch.setattr(readers, "READERS", {"bad": readers.Reader(read, list)})
        with pytest.raises(AssertionError, match=r"write to|Popen"):
            readers.read("bad", b"content", tmp_path / "folder")


@pytest.mark.long
@pytest.mark.parametrize("name", readers.READERS)
def test_fuzzer_finds_nothing(name: str, tmp_path: Path) -> None:
    """Each runs for PYROVAE_FUZZING seconds."""
    pytest.importorskip("atheris", reason="the fuzzers need the extra 'fuzz'")
    seconds = os.environ.get("PYROVAE_FUZZING", "120")
    fuzzer = Path(__file__).parents[1] / "fuzzing.py"
    command = [sys.executable, str(fuzzer), name, f"-max_total_time={seconds}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
