"""Keys of runs: equal runs have equal keys, other runs have others, and later releases find those of earlier ones."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

import pytest

from pyrovae import InputError, Run, Study, parts
from pyrovae.study import KINDS, cohort_key, key_of, keys
from pyrovae.study.keys import KEY_VERSION

#: By version, the keys of some runs. A change of the algorithm needs another version, and a line here.
GOLDEN = {
    1: {
        "defaults": "7674a781fc38e94c",
        "components": "32039bad22f16fb1",
        "pair": "2d2b1f3da8a00a42",
        "cohort": "86be310dec23aebb",
    }
}
#: Values that differ from most defaults.
CANDIDATES = (2, 3, 0.25, 0.75, True, False, "other")


def study(**settings: Any) -> Study:
    return Study(name="mine", **settings)


def test_keys_of_this_version_are_the_recorded_ones() -> None:
    runs = {
        "defaults": Run(),
        "components": Run(
            beta=0.1, seed=3, depth=3, prior="mixture(components=10)", model="gap", gamma=0.5, warmup=0.1
        ),
        "pair": Run(pair="pyrovae.programs.pair:Pair", data="mine.npz", split="checkerboard", precision="bfloat16"),
    }
    found = {name: key_of(run) for name, run in runs.items()}
    assert found | {"cohort": cohort_key(found.values())} == GOLDEN[KEY_VERSION]


@pytest.mark.parametrize(
    "spelling",
    [
        {"prior": "mixture", "components": 10, "depth": 3},
        {"prior": "mixture(components=10)", "network.depth": 3},
        {"prior": {"name": "mixture", "components": 10}, "network": "mlp(depth=3)"},
        {"prior": "mixture", "prior.components": "10", "network": {"name": "mlp", "depth": 3.0}},
        {"network": "mlp(depth=3, width=512)", "components": 10, "prior": "mixture", "train_ratio": 0.5, "beta": 1},
    ],
)
def test_all_spellings_of_a_run_have_one_key(spelling: dict[str, Any]) -> None:
    key = key_of(Run(prior="mixture", components=10, depth=3))
    assert key_of(Run(**spelling)) == key
    assert {key_of(run) for run in study(**spelling).resolved().runs()} == {key}
    axes = {name: [value] for name, value in spelling.items()}
    assert {key_of(run) for run in study(**axes).resolved().runs()} == {key}


def test_new_setting_of_a_component_keeps_old_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Run(prior="mixture", components=10)
    before = key_of(old)

    def extended(latent_size: int, components: int = 100, sharpness: float = 1.0) -> None: ...

    monkeypatch.setattr("pyrovae.models.priors.mixture.Mixture", extended)
    assert key_of(old) == key_of(Run(prior="mixture", components=10, sharpness=1)) == before
    assert key_of(Run(prior="mixture", components=10, sharpness=2)) != before


def test_new_setting_of_runs_keeps_old_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(Run):
        dropout: float = 0.0

    before = key_of(Run(beta=0.1))
    monkeypatch.setattr(keys, "Run", Later)
    assert key_of(Later(beta=0.1)) == before
    assert key_of(Later(beta=0.1, dropout=0.5)) != before


def test_every_setting_of_a_run_changes_its_key() -> None:
    runs = [Run(model="gap")]
    for name in Run.model_fields.keys() - {"steps", "model"}:
        runs += [Run(**{"model": "gap", name: value}) for value in _others_of_run(name)]
    runs += [Run(model=name) for name in _others_of_run("model") if name != "gap"] + [Run()]
    assert len({key_of(run) for run in runs}) == len(runs)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pair"])
def test_every_setting_of_a_component_changes_its_key(kind: str) -> None:
    for name in parts.names(kind):
        runs = [Run(**{kind: name})]
        for key, setting in parts.settings_of(kind, name).items():
            other = _other(setting.annotation, setting.default, setting.validated)
            runs.append(Run(**{kind: name, f"{kind}.{key}": other}))
        assert len({key_of(run) for run in runs}) == len(runs), name


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 5000},
        {"measure": {"images": 64, "also": ["mine:measure"]}},
        {"checkpoint_every": 7, "description": "mine"},
        {"components": 5},
        {"prior.components": 5},
        {"gamma": 0.5},
    ],
    ids=str,
)
def test_what_does_not_change_a_run_is_not_in_its_key(settings: dict[str, Any]) -> None:
    """How far it goes, what is measured, how often it is saved, and settings that none of its components takes."""
    assert [key_of(run) for run in study(**settings).runs()] == [key_of(Run())]


def test_key_of_a_cohort_is_the_same_in_any_order() -> None:
    (cohort,) = study(beta=[0.1, 1], seed=[0, 1]).cohorts()
    assert cohort.key == cohort_key(reversed(cohort.keys))
    assert len({cohort.key, *(half.key for half in cohort.halves()), *cohort.keys}) == 7


def _others_of_run(name: str) -> list[Any]:
    """Values of a setting other than its default: every component of a kind, otherwise one."""
    default = Run.model_fields[name].default
    if name in KINDS:
        return [each for each in parts.names(name) if each != default] or ["pyrovae.programs.pair:Pair"]
    return [_other(Run.model_fields[name].annotation, default, lambda value: getattr(Run(**{name: value}), name))]


def _other(annotation: Any, default: Any, validated: Callable[[Any], Any]) -> Any:
    """A value of a setting that is not its default."""
    for candidate in (*get_args(annotation), *CANDIDATES):
        with suppress(InputError, ValueError):
            if (value := validated(candidate)) not in (None, default):
                return value
    raise AssertionError(f"no candidate is a value of {annotation}")


def test_data_seed_of_a_run_is_a_number() -> None:
    tied = study(seed=[0, 1], data_seed="seed", train_images=64)
    assert [run.data_seed for run in tied.runs()] == [0, 1]
    assert tied.resolved().settings()["data_seed"] == Study.of_yaml(tied.to_yaml()).settings()["data_seed"] == "seed"
    assert key_of(tied.runs()[1]) == key_of(Run(seed=1, data_seed=1, train_images=64))
    assert key_of(Run(seed=1, data_seed="seed")) == key_of(Run(seed=1, data_seed=1)) != key_of(Run(seed=1))
    with pytest.raises(InputError, match="data_seed: expected numbers along an axis, or 'seed' alone"):
        study(data_seed=[0, "seed"])
