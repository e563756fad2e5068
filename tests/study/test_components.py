"""Settings of components: how a study gives them, to which component they belong, and what is wrong with them."""

import subprocess
import sys
from typing import Any

import pytest

from pyrovae import InputError, Run, Study, parts
from pyrovae.study import check_settings, component_settings


def study(**settings: Any) -> Study:
    return Study(name="mine", **settings)


@pytest.mark.parametrize(
    "run",
    [
        Run(prior="mixture", components=3),
        Run(prior={"name": "mixture", "components": 3}),
        Run(prior="mixture(components=3)"),
        Run(prior="mixture", **{"prior.components": 3}),
    ],
)
def test_all_spellings_of_a_setting_mean_the_same(run: Run) -> None:
    assert component_settings(run, "prior") == {"components": 3}


def test_more_specific_spelling_wins() -> None:
    run = Run(prior="mixture(components=3)", components=5, **{"prior.components": 4})
    assert component_settings(run, "prior")["components"] == 3
    assert component_settings(run.model_copy(update={"prior": "mixture"}), "prior")["components"] == 4


def test_unset_settings_have_their_declared_defaults() -> None:
    assert component_settings(Run(), "network") == {"depth": 1, "width": 512}
    assert component_settings(Run(depth=None), "network")["depth"] == 1


def test_settings_have_the_types_of_their_components() -> None:
    assert component_settings(Run(split="held_out", held_out=9), "split")["held_out"] == "9"
    resolved = study(prior=["vamp", "mixture"], components="5", train_ratio=[0.1, 0.3], depth=["1", 3]).resolved()
    assert (resolved.base.settings["components"], resolved.axes["depth"]) == (5, (1, 3))


@pytest.mark.parametrize("kind", [kind for kind in parts.SHIPPED if kind != "measure"])
def test_shipped_settings_accept_their_defaults(kind: str) -> None:
    for name in parts.names(kind):
        for key, setting in parts.settings_of(kind, name).items():
            if setting.default is not None:
                assert setting.validated(setting.default) == setting.default, (name, key)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detph": 1}, "unknown setting 'detph': no component of these runs has it; did you mean 'depth'; valid: "),
        ({"components": 3}, "unknown setting 'components'"),
        ({"network": "linear", "depth": [1, 3]}, "unknown setting 'depth'"),
        ({"network.detph": 1}, r"unknown setting 'network\.detph'"),
        ({"prior": "mixture(comps=3)"}, "prior: 'mixture' has no setting 'comps'; valid: components"),
        ({"prior": {"name": "vae"}}, "unknown prior 'vae'; valid: aggregate, "),
        ({"prior": {"components": 3}}, "prior: expected a name and settings such as"),
        ({"prior": {"name": "mixture", "components": [3]}}, "prior: expected a name and settings such as"),
        ({"depth": "three"}, r"network\.depth: input should be a valid integer.*, got 'three'"),
        ({"depth": [1, "three"]}, r"network\.depth: input should be a valid integer.*, got 'three'"),
        ({"depth": [3, "3"]}, "depth: expected values that differ, got"),
        ({"depth": True}, r"network\.depth: expected a number or a string, got the boolean True"),
        ({"depth": 1001}, r"network\.depth: input should be less than or equal to 1000, got 1001"),
        ({"train_ratio": 1.5}, r"split\.train_ratio: input should be less than 1, got 1\.5"),
        ({"prior": "flow(kind=RNN)"}, r"prior\.kind: input should be 'NSF' or 'MAF', got 'RNN'"),
        (
            {"model": "hierarchical", "guide": "hierarchical", "level_width": 8},
            r"level_width: ambiguous, .*; valid: model\.level_width, guide\.level_width",
        ),
        ({"network": "mlp(depth=2)", "depth": 3}, r"depth: set twice, by the study and by 'mlp\(depth=2\)'"),
        ({"prior": ["mixture", "mixture(components=100)"]}, "prior: expected values that differ, got"),
    ],
)
def test_wrong_setting_is_one_line_before_anything_is_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        study(**settings).resolved()
    assert "\n" not in str(caught.value)


def test_setting_that_some_run_uses_is_accepted_for_all() -> None:
    runs = study(prior=["standard_normal", "mixture"], components=[3, 5]).runs()
    check_settings(runs)
    assert len(runs) == 4
    with pytest.raises(InputError, match="unknown setting 'components'"):
        check_settings(runs[:1])


def test_resolved_study_is_complete_and_resolves_to_itself() -> None:
    resolved = study(prior="mixture(components=7)", **{"network.depth": [1, 3]}).resolved()
    assert resolved.axes["depth"] == (1, 3)
    assert resolved.base.prior == "mixture"
    assert resolved.base.settings == {
        "side": 32, "train_ratio": 0.5, "components": 7, "depth": 1, "width": 512
    }  # fmt: skip
    assert resolved.resolved() == resolved == Study.of_yaml(resolved.to_yaml())


def test_axis_values_keep_only_settings_that_say_more_than_the_name() -> None:
    values = ["standard_normal", {"name": "mixture", "components": 10}, {"name": "mixture", "components": 100}]
    assert study(prior=values).resolved().axes["prior"] == ("standard_normal", "mixture(components=10)", "mixture")
    labels = study(prior=values, components=10).resolved().axes["prior"]
    assert labels == ("standard_normal", "mixture", "mixture(components=100)")


def test_ambiguous_settings_keep_the_kinds_of_their_components() -> None:
    resolved = study(model="hierarchical", guide="hierarchical", **{"model.level_width": 8}).resolved()
    assert resolved.base.settings == {
        "side": 32, "train_ratio": 0.5, "depth": 1, "width": 512, "model.level_width": 8, "guide.level_width": 512
    }  # fmt: skip


def test_override_replaces_the_own_setting_of_a_component_in_a_study_file() -> None:
    def settings(**overrides: Any) -> dict[str, Any]:
        loaded = Study.load("fashion", **overrides).resolved().base.settings
        assert Study.load("fashion").replace(**overrides).resolved().base.settings == loaded
        return dict(loaded)

    assert settings()["width"] == 256
    assert settings(width=64)["width"] == settings(**{"network.width": 64})["width"] == 64
    assert "width" not in settings(network="conv_small")


@pytest.mark.parametrize("names", [("depth", "network.depth"), ("network.depth", "depth")])
def test_override_replaces_a_setting_by_either_name(names: tuple[str, str]) -> None:
    mine = study(**{names[0]: [1, 3]}).replace(**{names[1]: 2}).resolved()
    assert list(mine.axes) == ["beta", "seed"]
    assert mine.base.settings["depth"] == 2


def test_order_in_which_settings_are_given_does_not_matter() -> None:
    settings = {"depth": [1, 3], "width": [8, 16], "prior": "mixture", "components": 100, "steps": 5}
    backwards = dict(reversed(settings.items()))
    files = {study(**each).resolved().to_yaml() for each in (settings, backwards, settings | {"train_ratio": 0.5})}
    assert len(files) == 1


def test_misspelt_component_is_found_without_torch_or_user_code() -> None:
    code = """
import sys
from pyrovae import InputError, Run
Run(prior="nowhere:Prior", network="mlp(depth=3)")
try:
    Run(prior="vampp")
except InputError as error:
    sys.exit("torch" in sys.modules or not str(error).startswith("unknown prior 'vampp'; valid: aggregate"))
sys.exit("not found")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_installed_distributions_add_components(monkeypatch: pytest.MonkeyPatch) -> None:
    added = {"prior.horseshoe": "pyrovae.models.priors.mixture:Mixture", "guide.other": "nowhere:Guide"}
    monkeypatch.setattr(parts, "_installed", lambda: added)
    assert component_settings(Run(prior="horseshoe", components=2), "prior") == {"components": 2}
    with pytest.raises(InputError, match="guide: expected 'other' to be importable, got ModuleNotFoundError"):
        study(guide="other").resolved()
