"""What the fuzzers found, given to the readers again; and, as long as one likes, the fuzzers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import readers

HERE = Path(__file__).parent
CASES = sorted(file.relative_to(HERE / "cases") for file in (HERE / "cases").rglob("*") if file.is_file())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_found_case_is_read_or_refused(case: Path, tmp_path: Path) -> None:
    readers.read(case.parent.name, (HERE / "cases" / case).read_bytes(), tmp_path)


@pytest.mark.parametrize("name", readers.READERS)
def test_what_the_fuzzers_begin_with_is_taken(name: str, tmp_path: Path) -> None:
    for example in readers.READERS[name].examples():
        readers.READERS[name].read(example, tmp_path)


def test_what_a_reader_must_not_do_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(content: bytes, folder: Path) -> None:
        (folder.parent / "elsewhere").write_bytes(content)

    def process(content: bytes, folder: Path) -> None:
        subprocess.run(["true"])

    for read in (elsewhere, process):
        monkeypatch.setattr(readers, "READERS", {"bad": readers.Reader(read, list)})
        with pytest.raises(AssertionError, match=r"write to|Popen"):
            readers.read("bad", b"content", tmp_path / "folder")


@pytest.mark.long
@pytest.mark.parametrize("name", readers.READERS)
def test_fuzzer_finds_nothing(name: str, tmp_path: Path) -> None:
    """For as many seconds as PYROVAE_FUZZING says."""
    pytest.importorskip("atheris", reason="the fuzzers take the extra 'fuzz'")
    seconds = os.environ.get("PYROVAE_FUZZING", "120")
    command = [sys.executable, str(HERE / "fuzzing.py"), name, f"-max_total_time={seconds}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
