"""Executes notebooks in place, as they are committed: with small outputs, and what these were made from.

python analysis/notebooks/execute.py reading_a_study paper_figures
python analysis/notebooks/execute.py --check paper_figures  # whether its text is what the present code prints
"""

import argparse
import base64
import hashlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

from pyrovae.system.provenance import software_versions

FOLDER = Path(__file__).parent
#: Colours of a committed picture.
COLOURS = 64


def executed(notebook: Any) -> Any:
    """The notebook with outputs, and in its metadata a checksum of its code and the versions that made them."""
    NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in code(notebook):
        cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = smaller(data["image/png"])
            data.pop("text/html", None)  # tables as text are a fraction of its size
    notebook.metadata["pyrovae"] = {"code": checksum(notebook), "versions": software_versions()}
    return notebook


def code(notebook: Any) -> Iterator[Any]:
    """The code cells of a notebook."""
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def checksum(notebook: Any) -> str:
    """A checksum of the code of a notebook."""
    return hashlib.sha256("\0".join(cell.source for cell in code(notebook)).encode()).hexdigest()[:16]


def smaller(picture: str) -> str:
    """A PNG file in base64 with fewer colours."""
    content = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        image.convert("RGB").quantize(COLOURS).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def printed(notebook: Any) -> str:
    """What the cells of a notebook print."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


def main() -> None:
    """Executes notebooks, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="names of notebooks")
    parser.add_argument("--check", action="store_true", help="compare with what is committed, and write nothing")
    arguments = parser.parse_args()
    for name in arguments.names:
        file = FOLDER / f"{name}.ipynb"
        committed, now = (nbformat.read(file, as_version=4) for _ in range(2))
        executed(now)
        if not arguments.check:
            nbformat.write(now, file)
        elif printed(now) != printed(committed):
            sys.exit(f"{file}: expected the text that this prints, got another one: execute the notebook again")


if __name__ == "__main__":
    main()
