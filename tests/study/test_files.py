"""Study files are YAML 1.2: numbers are numbers, text is text, and nothing grows or runs."""

from typing import Any

import pytest

from pyrovae import InputError, Study
from pyrovae.study import files, shipped


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1e3", 1000.0), (".5", 0.5), ("010", 10), ("1:30", "1:30"), ("1:5", "1:5"), ("yes", "yes"),
        ("true", True), ("null", None), ("'9'", "9"), ("[0.1, 1]", [0.1, 1]), ("", None),
        ("{name: mixture, components: 10}", {"name": "mixture", "components": 10}),
        ("mixture(components=10)", "mixture(components=10)"),
    ],
)  # fmt: skip
def test_values_are_read_as_yaml_1_2(text: str, value: Any) -> None:
    assert files.parse_yaml(text) == value
    assert type(files.parse_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x [1]\nb: *x", "references"),
        ("beta: 1\nbeta: 2", "duplicate key"),
        ("[" * 1_000_000, "nested too deeply"),
        ("9" * 5000, "integers of at most 100 digits, got one of 5,000"),
        ("{seed: [1, 0x" + "f" * 5000 + "]}", "integers of at most 100 digits, got one of 5,002"),
        ("!!python/object/apply:os.system [ls]", "constructor"),
        ("a: [1", "expected"),
        ("\0", "character"),
        ("%YAML 1.1\n---\nsteps: 010", "directives"),
        ("seed: !!int ''", "the type of its tag"),
        ("seed: !!bool 3", "the type of its tag"),
    ],
)
def test_text_that_is_not_plain_yaml_is_refused_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        files.parse_yaml(text)
    assert "\n" not in str(caught.value)


def test_settings_come_back_from_their_yaml() -> None:
    settings = {"description": "β: a weight", "beta": [1e-30, 0.1, 1e30], "held_out": "9", "measure": {"also": []}}
    assert files.parse_yaml(files.to_yaml(settings)) == settings
    assert list(files.parse_yaml(files.to_yaml(settings))) == list(settings)


@pytest.mark.parametrize("name", shipped())
def test_shipped_study_resolves_and_comes_back_from_its_file(name: str) -> None:
    study = Study.load(name).resolved()
    assert Study.of_yaml(study.to_yaml()) == study
    assert study.description


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("seed: 1:5", r"seed: input should be a valid integer.*, got '1:5'"),
        ("beta: 1:30", r"beta: input should be a valid number.*, got '1:30'"),
        ("beta: [0.1, 1:30]", r"beta: input should be a valid number.*, got '1:30'"),
        ("depth: 1:30", r"network.depth: input should be a valid integer.*, got '1:30'"),
    ],
)
def test_number_in_base_sixty_is_refused(setting: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Study.load("quick", **files.parse_yaml(setting)).resolved()


def test_leading_zeros_of_a_number_mean_nothing() -> None:
    assert Study.load("quick", **files.parse_yaml("steps: 010")).base.steps == 10


def test_number_too_long_to_be_shown_is_one_line() -> None:
    with pytest.raises(InputError, match=r"seed: expected a number below 2\^1000, got one of 16,610 bits"):
        Study.load("quick", seed=10**5000)


def test_value_in_a_command_has_no_comment() -> None:
    with pytest.raises(ValueError, match="'#2' would be a comment; put the value in double quotes"):
        files.parse_yaml("cats #2", comments=False)
    assert files.parse_yaml('"cats #2"', comments=False) == "cats #2"
    assert files.parse_yaml("cats#2", comments=False) == "cats#2"
    assert files.parse_yaml("beta: 1 # the usual") == {"beta": 1}
