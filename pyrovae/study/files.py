"""Study files: YAML 1.2 text, and the studies that ship."""

import io
from importlib import resources
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, SafeConstructor, ScalarNode, YAMLError
from ruamel.yaml.tokens import (
    AliasToken,
    BlockEndToken,
    BlockMappingStartToken,
    BlockSequenceStartToken,
    DirectiveToken,
    FlowMappingEndToken,
    FlowMappingStartToken,
    FlowSequenceEndToken,
    FlowSequenceStartToken,
    StreamEndToken,
)

from pyrovae.errors import InputError

#: Most characters of a study file.
MAX_CHARACTERS = 1_000_000
#: Most characters of an integer: Python converts no longer ones to text.
MAX_DIGITS = 100
#: Most lists and mappings inside each other; the time of the scanner grows with the square of their number.
MAX_DEPTH = 50
_OPENING = (BlockMappingStartToken, BlockSequenceStartToken, FlowMappingStartToken, FlowSequenceStartToken)
_CLOSING = (BlockEndToken, FlowMappingEndToken, FlowSequenceEndToken)


def parse_yaml(text: str, *, comments: bool = True) -> Any:
    """The plain values in a text; references are refused, because nested ones grow without bound.

    Raises:
        ValueError: the text is not YAML, repeats a key, or has references or an endless integer.

    Example:
        >>> parse_yaml("beta: [1e-3, 1]")
        {'beta': [0.001, 1]}
    """
    try:
        depth = end = 0
        for token in _yaml().scan(text):
            if isinstance(token, AliasToken):
                raise ValueError("references (*name) are not supported")
            if isinstance(token, DirectiveToken):
                raise ValueError("directives (%YAML, %TAG) are not supported")
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if depth > MAX_DEPTH:
                raise ValueError("it is nested too deeply")
            end = end if isinstance(token, StreamEndToken) else token.end_mark.index
        if not comments and (rest := text[end:].strip()):
            raise ValueError(f"'{rest:.50}' would be a comment; put the value in double quotes")
        return _yaml().load(text)
    except YAMLError as error:
        raise ValueError(" ".join(str(getattr(error, "problem", error)).split())) from error
    except (IndexError, KeyError) as error:
        raise ValueError(f"a value does not have the type of its tag ({error})") from error


def to_yaml(settings: Any) -> str:
    """Plain values as YAML, mappings in their order."""
    text = io.StringIO()
    _yaml().dump(settings, text)
    return text.getvalue()


def read(source: str | Path) -> tuple[str, str]:
    """Text of the study that ships under a name, or is in a file or a folder, and what to call it in a message.

    Raises:
        InputError: there is no such study or file, or the file cannot be read.
    """
    path = Path(source)
    if path.is_dir() and (path / "study.yaml").exists():
        path = path / "study.yaml"
    if path.suffix in (".yaml", ".yml") or path.parent != Path("."):
        return _read_file(path), str(path)
    file = _shipped() / f"{source}.yaml"
    if not file.is_file():
        raise InputError(
            f"unknown study {str(source)!r:.200}; valid: {', '.join(shipped_names())}, or the path of a .yaml file or "
            "of a study's folder"
        )
    return file.read_text(encoding="utf-8"), f"study '{source}'"


def shipped_names() -> list[str]:
    """Names of the studies that ship."""
    return sorted(file.name.removesuffix(".yaml") for file in _shipped().iterdir() if file.name.endswith(".yaml"))


def _read_file(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: expected a study file, got something else")
    try:
        with path.open(encoding="utf-8") as opened:
            text = opened.read(MAX_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a study file, but it cannot be read: {error}") from error
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{path}: expected a study file, got more than {MAX_CHARACTERS:,} characters")
    return text


def _shipped() -> Any:
    return resources.files("pyrovae.study") / "shipped"


class _Constructor(SafeConstructor):
    def construct_yaml_int(self, node: ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise ValueError(f"expected integers of at most {MAX_DIGITS} digits, got one of {len(node.value):,}")
        return super().construct_yaml_int(node)


_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    yaml.default_flow_style = None
    yaml.allow_unicode = True
    yaml.width = 4096
    yaml.sort_base_mapping_type_on_output = False
    return yaml
