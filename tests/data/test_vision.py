"""The import of torchvision."""

import subprocess
import sys

import pytest

from pyrovae.data import vision


def in_new_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_torchvision_is_imported_lazily_and_completely() -> None:
    result = in_new_process(
        "import sys, pyrovae.data.images, pyrovae.data.torchvision_datasets\n"
        "from pyrovae.data import vision\n"
        "assert 'torchvision' not in sys.modules\n"
        "assert vision.datasets() is vision.datasets()\n"
        "import torchvision.transforms, torchvision.utils\n"
        "assert torchvision.datasets is vision.datasets()\n"
        "parts = [name.rpartition('.') for name in sys.modules if name.startswith('torchvision.')]\n"
        "assert all(hasattr(sys.modules[package], part) for package, _, part in parts)"
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_other_import_errors_of_torchvision_propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: str) -> None:
        raise RuntimeError("another reason")

    monkeypatch.setattr(vision, "import_module", fails)
    with pytest.raises(RuntimeError, match="another reason"):
        vision.datasets()
    assert "torchvision" in sys.modules
