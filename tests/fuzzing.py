"""Coverage-guided fuzzing of all that reads what a stranger may have written.

    python tests/fuzzing.py READER [CORPUS] [-max_total_time=SECONDS] [more options of libFuzzer]

READER is a name in readers.py. Any end of it but to return or to refuse, a read that takes a minute or 4 GB, and
anything done outside of its folder stop the fuzzer, and the bytes that did it are in crash-…, timeout-… or oom-… in the
current folder. Once the reader is mended they belong into tests/cases/READER, where the suite gives them to it again.
"""

import sys
import warnings
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch


def main() -> None:
    import atheris  # which the suite, looking here for doctests, may lack

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["pyrovae", "yaml", "PIL"]):
        readers = import_module("readers")
    with TemporaryDirectory() as place:
        corpus = Path(place) / "examples"
        corpus.mkdir()
        for number, example in enumerate(readers.READERS[name].examples()):
            (corpus / str(number)).write_bytes(example)
        folder = Path(place) / "folder"
        folder.mkdir()
        limits = ["-timeout=60", "-rss_limit_mb=4096", "-max_len=400000", "-use_value_profile=1"]
        corpora = [option for option in options if not option.startswith("-")]
        chosen = [option for option in options if option.startswith("-")]
        atheris.Setup(
            [sys.argv[0], *corpora, str(corpus), *limits, *chosen], lambda content: readers.read(name, content, folder)
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
