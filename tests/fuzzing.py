"""Coverage-guided fuzzing of all readers of untrusted input.

    python tests/fuzzing.py READER [CORPUS] [-max_total_time=SECONDS] [more options of libFuzzer]

READER is a name in readers.py. The fuzzer stops when a reader does anything but return or raise `InputError`, takes
more than a minute or 4 GB, or acts outside its folder; the input is then in crash-…, timeout-… or oom-… in the current
folder. After fixing the reader, add this file to tests/system/cases/READER, which the test suite reads.
"""

import sys
import warnings
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch


def main() -> None:
    import atheris  # optional: pytest imports this module for its doctests

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["pyrovae", "ruamel.yaml", "PIL"]):
        readers = import_module("readers")
    with TemporaryDirectory() as root:
        examples, folder = Path(root) / "examples", Path(root) / "folder"
        examples.mkdir()
        folder.mkdir()
        for number, example in enumerate(readers.READERS[name].examples()):
            (examples / str(number)).write_bytes(example)
        limits = ["-timeout=60", "-rss_limit_mb=4096", "-max_len=400000", "-use_value_profile=1"]
        corpora = [option for option in options if not option.startswith("-")]
        flags = [option for option in options if option.startswith("-")]
        arguments = [sys.argv[0], *corpora, str(examples), *limits, *flags]
        atheris.Setup(arguments, lambda content: readers.read(name, content, folder))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
