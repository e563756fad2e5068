"""The command line: output, files and one-line errors."""

import io
import os
import platform
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import platformdirs
import pytest
from helpers import COMMAND, TIMEOUT, assert_refused, run_commands
from PIL import Image

from pyrovae import InputError, open_results
from pyrovae.cli import _insist, main
from pyrovae.estimators import Annealing, Optimisation
from pyrovae.runner.diagnose import diagnose_run
from pyrovae.store.checkpoint import load_header

STUDY = """
name: small
data: tetrominoes
split: checkerboard
train_images: 256
test_images: 128
beta: [0.1, 1]
depth: [1, 2]
width: 8
steps: 300
batch_size: 32
checkpoint_every: 20
measure: {particles: 4, reconstructions: 16, images: 128, probe: 64, points: 2}
"""


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a study file."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(STUDY, encoding="utf-8")
    return tmp_path


def pyrovae(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in this process, where torch is already imported."""
    words, out, err = ["pyrovae", *arguments], io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.object(sys, "path", list(sys.path)),
        warnings.catch_warnings(action="default"),
        redirect_stdout(out),
        redirect_stderr(err),
        time_limit(),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return subprocess.CompletedProcess(words, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def refused(*arguments: str, expected: str) -> None:
    """Asserts that the command ends with status 2 and one line that contains the expected text."""
    assert_refused(pyrovae(*arguments), expected)


@contextmanager
def time_limit() -> Iterator[None]:
    """Stops a study that should have been refused."""

    def stop(*_: object) -> None:
        raise AssertionError(f"the command was still running after {TIMEOUT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIMEOUT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def installed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the installed command in a new process."""
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=TIMEOUT)


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [COMMAND, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def set_each(*settings: str) -> list[str]:
    """The options --set KEY=VALUE for several settings."""
    return [word for setting in settings for word in ("--set", setting)]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("betta=1", "unknown setting 'betta': no component of these runs has it"),
        ("measure.imags=1", "unknown setting 'measure.imags'; valid: "),
        ("data=nonsense", "unknown data 'nonsense'; valid: "),
        ("split=nonsense", "unknown split 'nonsense'; valid: "),
        ("prior=nonsense", "unknown prior 'nonsense'; valid: "),
        ("likelihood=nonsense", "unknown likelihood 'nonsense'; valid: "),
        ("guide=[mean_field,nonsense]", "unknown guide 'nonsense'; valid: "),
        ("network=nonsense", "unknown network 'nonsense'; valid: "),
        ("model=nonsense", "unknown model 'nonsense'; valid: "),
        ("pair=nonsense", "unknown pair 'nonsense'; valid: "),
        ("pixels=nonsense", "unknown pixels 'nonsense'; valid: continuous, dynamic, static"),
        ("data=nonsense.npz", "nonsense.npz: "),
        ("data=nowhere/", "nowhere: "),
        ("warmup=2", "warmup: input should be less than or equal to 1, got 2"),
        ("split=published", "split: 'published' needs a data set with a published split"),
        ("train_ratio=0.3", "unknown setting 'train_ratio': no component of these runs has it"),
        ("images_per_class=3", "images_per_class: expected a data set with classes"),
        ("guide=evil:Guide", "guide: 'evil:Guide' would run code of the module evil, which is not trusted"),
        ("guide=!!binary bXk6R3VpZGU=", "guide: expected a number or a string, got binary data"),
        ("network=linear", "unknown setting 'depth': no component of these runs has it"),
        ("gamma=0.1", "gamma: the model 'vae' does not take it, got 0.1; without it: --set gamma=null"),
        ("cycles=3000", "cycles: expected at most the 2500 steps of the training, got 3000"),
        ("network=[mlp,a.b:c]", "network: 'a.b:c' would run code of the module a.b"),
        ("beta=0", "beta: input should be greater than 0, got 0"),
        ("beta=[1,-1]", "beta: input should be greater than 0, got -1"),
        ("beta=.nan", "beta: input should be a finite number, got nan"),
        ("beta=[]", "beta: expected at least one value"),
        ("beta=[1,1]", "beta: expected values that differ"),
        ("depth=0", "depth: input should be greater than or equal to 1, got 0"),
        ("batch_size=90000", "batch_size: expected at most the 81925"),
        ("train_images=90000", "train_images: expected at least 2 and at most the 8"),
        ("steps", "--set: expected KEY=VALUE, got 'steps'"),
        ("beta=[", "--set beta: expected a value such as"),
        ("seed=0x" + "f" * 5000, "--set seed: expected a value such as 3, 0.1 or [0.1, 1], got '0xfff"),
        ("seed=1:5", "seed: input should be a valid integer, unable to parse string as an integer, got '1:5'"),
        ("measure=3", "measure: expected settings such as 'images: 2048', got 3"),
        ("beta=1e-46", "beta: "),
    ],
)
def test_bad_setting_is_refused_in_one_line(setting: str, expected: str) -> None:
    refused("run", "--set", setting, expected=expected)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "nonsense"], "unknown study 'nonsense'; valid: "),
        (["run", "nonsense.yaml"], "nonsense.yaml: expected a study file"),
        (["run", "gap", "--set", "beta=0.1"], "gamma: expected at most β = 0.1, got 0.3: a larger weight would"),
        (["run", "--set", "split=random", "--set", "train_ratio=1"], "train_ratio: input should be less than 1, got 1"),
        (["run", "gap", "--set", "gamma=-1"], "gamma: input should be greater than or equal to 0, got -1"),
        (
            ["run", "paper-ood", "--set", "prior=aggregate"],
            "60 runs of 128 images would be compared with all 81,925 encodings",
        ),
        (["run", "--trust", "evil", "--set", "guide=evil:Guide"], "guide: expected 'evil:Guide' to be importable"),
        (
            ["run", "--trust", "math", "--set", "data=math:pi"],
            "data: expected 'math:pi' to be a class or a function, got float",
        ),
        (["diagnose", "x", "--images", "0:1001"], "--images: expected at most 1,000 rows, got '0:1001'"),
        (["run", "--out", "small.yaml"], "small.yaml: expected a writable folder"),
        (["run", "--device", "tpu"], "'tpu' is not one of"),
        (["run", "--nonsense"], "No such option: --nonsense"),
        (["run", "studies/", "--plan"], "unknown study 'studies/'; valid: "),
        (["diagnose", "nowhere"], "nowhere: expected the folder of a study"),
        (["diagnose", "nowhere", "--images", "0;3"], "--images: expected rows such as 0:3 or 0,3,17, got '0;3'"),
        (["diagnose", "nowhere", "--select", "beta"], "--select: expected KEY=VALUE, got 'beta'"),
        (["run", "--set", "data=cats #2"], "--set data: expected a value such as"),
        (["remove", "nowhere", "--select", 'held_out="0,9",beta'], "--select: expected KEY=VALUE, got 'beta'"),
        (
            ["remove", "nowhere", "--select", "prior=mixture(components=2,a=b),[x"],
            "--select: expected KEY=VALUE, got 'x'",
        ),
        (["diagnose", "nowhere", "--split", "all"], "'all' is not one of"),
        (["show"], "Missing argument"),
        (["show", "nowhere"], "nowhere: expected the folder of a study"),
        (["figures", "paper-slice", "--format", "gif"], "'gif' is not one of"),
        (["figures", "paper-slice", "--width", "1"], "'--width': Input should be greater than or equal to 2"),
    ],
)
def test_bad_command_is_refused_in_one_line(arguments: list[str], expected: str) -> None:
    refused(*arguments, expected=expected)
    assert not Path("runs").exists()


def test_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides the GPUs of this machine
    refused("run", "--device", "cuda", expected="device: expected a CUDA device, but torch finds none")


def test_plan_describes_the_runs_and_writes_nothing() -> None:
    done = pyrovae("run", "small.yaml", "--plan")
    assert done.returncode == 0
    assert "depth 2: 2 runs, all new; 300 steps; 256 training and 128 test images" in done.stdout
    assert "to do: about " in done.stdout
    banked = pyrovae("run", "small.yaml", "--plan", "--set", "prior=aggregate", "--set", "refresh=30")
    expected = (
        "against 256 cached encodings, refreshed every 30 steps: 16,384 densities a step, 393,216 to measure R and log"
    )
    assert expected in banked.stdout
    assert not Path("runs").exists()


def test_studies_and_version_are_listed() -> None:
    listed = pyrovae("studies").stdout
    assert all(name in listed for name in ("quick", "paper-ood", "paper-id"))
    version = pyrovae("--version").stdout
    assert version.startswith("pyrovae ")
    for module in ("pyrovae", "pyrovae.cli"):
        command = [sys.executable, "-m", module, "--version"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == version


@pytest.mark.usefixtures("one_figure")
def test_show_repeats_what_run_printed() -> None:
    done = pyrovae("run", "small.yaml", *set_each("steps=20", "depth=1"))
    assert done.returncode == 0, done.stderr
    assert all((Path("runs/small/figures") / f"rate_distortion.{suffix}").stat().st_size for suffix in ("png", "svg"))
    shown = installed("show", "runs/small").stdout
    assert "D test" in shown
    assert "undecided  β 1 → 0.1: test distortion " in shown
    assert "report with figures: runs/small/report.html" in shown
    assert done.stdout.endswith(shown)
    drawn = pyrovae(
        "figures", "runs/small", "rate_distortion", "--width", "3.3", "--format", "pdf", "--format", "svg", "--dark"
    )
    assert drawn.stdout == "in runs/small/figures/print: rate_distortion.pdf, rate_distortion.svg\n"
    assert Path("runs/small/figures/print/rate_distortion.pdf").exists()
    everything = pyrovae("show", "runs/small", "--all").stdout
    assert "Lowering β from 1 to 0.1" in everything
    (caveat,) = pyrovae("show", "runs/small", "caveats").stdout.splitlines()[:1]
    assert caveat in everything
    refused(
        "show", "runs/small", "nonsense", expected="unknown part 'nonsense'; valid: findings, best, rate_distortion, "
    )


BARE = """
import os, pwd, sys
from pyrovae.cli import main

def unknown(user):
    raise KeyError(user)

pwd.getpwuid = unknown
main()
"""


def bare(*arguments: str, encoding: str = "ascii", **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the command for a user without a name and a home folder, on a terminal with few characters."""
    command = [sys.executable, "-c", BARE, *arguments]
    variables |= {"PATH": os.environ["PATH"], "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(command, capture_output=True, encoding=encoding, timeout=TIMEOUT, env=variables, check=False)


@pytest.mark.long
def test_command_needs_no_home_and_no_known_backend() -> None:
    done = bare("run", "small.yaml", *set_each("steps=2", "depth=1", "beta=1"), MPLBACKEND="nonsense")
    assert done.returncode == 0, done.stderr
    assert "expected a home folder for caches, got a user without one; they are in " in done.stderr
    assert done.stderr.count("\n") == 1
    assert "report with figures: runs/small/report.html" in done.stdout
    assert sorted(path.name for path in Path().iterdir()) == ["runs", "small.yaml"]
    imported = "import pyrovae; pyrovae.run; import matplotlib; print(matplotlib.get_backend())"
    backend = [sys.executable, "-c", imported]
    environment = {**os.environ, "MPLBACKEND": "nonsense"}
    assert subprocess.run(backend, capture_output=True, text=True, check=True, env=environment).stdout == "agg\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "pyrovae: out of memory:"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "pyrovae: out of memory: libtorch.so"),
        (RuntimeError("CPUAllocator: can't allocate memory\nTrace Shapes:"), "pyrovae: out of memory: CPUAllocator"),
    ],
)
def test_too_little_memory_is_one_line(error: Exception, line: str) -> None:
    with mock.patch("pyrovae.study.Study.load", side_effect=error):
        done = pyrovae("run", "small.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert (done.stderr.count("\n"), "Trace Shapes" in done.stderr) == (1, False)


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_a_terminal_lacks_are_replaced(encoding: str) -> None:
    assert pyrovae("run", "small.yaml", *set_each("steps=2", "depth=1")).returncode == 0
    shown = bare("show", "runs/small", encoding=encoding, HOME=str(Path.cwd()))
    assert shown.returncode == 0, shown.stderr
    assert "? " in shown.stdout
    assert "report with figures: runs/small/report.html" in shown.stdout
    helped = bare("--help", encoding=encoding, HOME=str(Path.cwd()))
    assert (helped.returncode, helped.stderr) == (0, "")
    assert f"Rate{'–'.encode(encoding, 'replace').decode(encoding)}distortion" in helped.stdout


def test_evaluate_shows_new_and_old_numbers_side_by_side() -> None:
    assert pyrovae("run", "small.yaml", *set_each("steps=2", "depth=1")).returncode == 0
    done = pyrovae("evaluate", "runs/small", "--images", "64", "--samples", "3", "--outer", "32")
    assert done.returncode == 0, done.stderr
    words = [line.split("│")[2].strip() for line in done.stdout.splitlines() if line.count("│") > 3]
    assert [word for word in words if word in ("before", "now")] == ["before", "now"] * 6  # three tables of two cells
    assert "effective rank" not in done.stdout  # it is the same
    assert "in the results as images=64,likelihood_images=64,samples=3,outer=32" in done.stdout
    assert pyrovae("evaluate", "runs/small", "--prior", "mixture", "--set", "prior.components=3").returncode == 0
    assert "prior=mixture(components=3)" in open_results("runs/small").evaluations
    swapped = pyrovae("evaluate", "runs/small", "--prior", "aggregate")
    assert "aggregate replaces the prior of each run, fitted to its encodings; D is unchanged" in swapped.stdout
    refused("evaluate", "runs/small", "--prior", "nonsense", expected="unknown prior 'nonsense'; valid: ")
    refused("evaluate", "runs/small", "--prior", "evil:P", expected="prior: 'evil:P' would run code of the module evil")
    refused("evaluate", "runs/small", "--samples", "0", expected="measure.samples: input should be greater")
    refused("evaluate", "runs/small", "--images", "257", expected="images: expected at most the 256 images")
    refused("evaluate", "nowhere", expected="nowhere: expected the folder of a study")


def test_diagnose_compares_the_guide_with_exact_posteriors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(diagnose_run.__kwdefaults__, "annealing", Annealing(10, 4))
    monkeypatch.setitem(diagnose_run.__kwdefaults__, "optimisation", Optimisation(10))
    monkeypatch.setattr("pyrovae.runner.diagnose.CHECKED", 16)
    assert pyrovae("run", "small.yaml", "--set", "steps=2", "--set", "depth=1").returncode == 0
    short = ["diagnose", "runs/small", "--chains", "2", "--draws", "10", "--warmup", "10"]
    done = pyrovae(*short, "--select", "beta=0.1", "--images", "7,2:4")
    assert done.returncode == 0, done.stderr
    rows = [cells for line in done.stdout.splitlines() if len(cells := line.split("│")) == 13]
    assert [row[1].strip() for row in rows] == ["7", "2", "3"]
    assert all("±" in row[10] and "±" in row[11] for row in rows)
    assert "the guide was trained at β = 0.1" in done.stdout
    assert "unreliable exact posterior for image" in done.stdout  # ten draws are too few
    assert pyrovae(*short, "--select", "beta=1e-1", "--images", "0").returncode == 0
    assert "in runs/small/diagnosis_1: checks.nc, exact.nc, guide.nc, inference_gap.png" in done.stdout
    refused(*short, expected="beta: expected one of [0.1, 1.0], got no beta")
    refused(*short, "--select", "beta=1", "--images", "128", expected="images: expected rows of the 128 test images")


@pytest.mark.long
@pytest.mark.usefixtures("one_figure")
def test_annealing_runs_only_on_request() -> None:
    assert pyrovae("run", "small.yaml", "--set", "steps=2", "--set", "depth=1").returncode == 0
    short = ["evaluate", "runs/small", "--ais", "--temperatures", "5", "--chains", "3"]
    done = pyrovae(*short, "--images", "10", "--particles", "30")
    assert done.returncode == 0, done.stderr
    assert "by annealing" in done.stdout
    assert "measure small" in done.stdout
    results = open_results("runs/small")
    assert results.tree["likelihood/annealed_log_likelihood"].isnull().all()
    ((name, evaluation),) = results.evaluations.items()
    assert Path("runs/small/figures", name, "rate_distortion.png").exists()
    again, images = evaluation.tree, evaluation.images().sel(split="test")
    gain = (images["annealed_log_likelihood"] - images["log_likelihood"]).mean("image")
    assert (images["annealed_log_likelihood"].notnull().sum("image") == 10).all()
    np.testing.assert_allclose(gain, again["likelihood/annealed_gain"], atol=1e-6)
    for name in ("acceptance", "sandwich_gap", "sandwich_gap_se", "effective_draws", "high_pareto_k"):
        assert again["likelihood"][name].notnull().all()
    swapped = pyrovae(*short, "--prior", "aggregate")
    assert swapped.returncode == 0, swapped.stderr
    (name,) = [each for each in open_results("runs/small").evaluations if each.startswith("prior=aggregate,")]
    images = open_results("runs/small").evaluations[name].images()
    assert (images["annealed_log_likelihood"].notnull().sum("image").sel(split="test") == 16).all()
    refused("evaluate", "runs/small", "--chains", "3", expected="are options of --ais: add --ais")
    refused(
        "evaluate", "runs/small", "--ais", "--temperatures", "0", expected="Input should be greater than or equal to 1"
    )
    refused("evaluate", "runs/small", "--ais", "--images", "0", expected="measure.images: input should be greater")
    two = set_each("model=hierarchical", "guide=hierarchical", "steps=2", "depth=1", "measure.temperatures=5")
    refused("run", "small.yaml", *two, "--out", "two", expected="does not support annealing: expected one latent")
    assert not Path("two/study.yaml").exists()


def test_hierarchical_pair_runs_end_to_end() -> None:
    done = pyrovae("run", "small.yaml", *set_each("model=hierarchical", "guide=hierarchical", "steps=2", "depth=1"))
    assert done.returncode == 0, done.stderr
    again = pyrovae("evaluate", "runs/small", "--samples", "2")
    for output in (done.stdout, again.stdout):
        assert "D is a cross-entropy, because pixels are grey; R is Monte Carlo" in " ".join(output.split())
    assert "R of the site, test" in again.stdout
    tree = open_results("runs/small").tree
    assert set(tree["runs/rate_kind"].values.flatten()) == {"Monte Carlo"}
    assert set(tree["levels"]["level"].values) == {"z1", "z2"}
    np.testing.assert_allclose(tree["levels/rate"].sum("level"), tree["rate_distortion/rate"].transpose("split", ...))
    assert not np.allclose(*tree["levels/rate"].values)


def test_folder_of_another_study_is_refused() -> None:
    assert pyrovae("run", "small.yaml", "--set", "steps=2").returncode == 0
    different = ("run", "small.yaml", "--set", "batch_size=7")
    refused(*different, expected="got other settings: batch_size: 32 before, 7 now; choose another --out")
    refused(*different, "--plan", expected="got other settings: batch_size")
    refused("run", "small.yaml", "--set", "steps=1", expected="steps: expected at least the 2 steps that the run at")


@pytest.mark.parametrize("command", [["run", "small.yaml"], ["run", "small.yaml", "--plan"], ["compare", "a", "b"]])
def test_folder_whose_name_is_not_utf_8_is_refused(command: list[str]) -> None:
    before = sorted(Path().iterdir())
    refused(*command, "--out", "fol\udce9e", expected="fol?e: expected the name of a folder in UTF-8")
    assert sorted(Path().iterdir()) == before


def test_likelihood_with_another_support_is_refused_before_training() -> None:
    linear = ["run", "linear", "--set", "likelihood=bernoulli"]
    refused(*linear, expected="likelihood: 'bernoulli' on 'linear': expected values in [0, 1]")


def test_floats_are_not_binarised() -> None:
    refused("run", "linear", "--set", "pixels=static", expected="pixels: expected images with 256 grey values")


def test_mismatched_guide_is_refused_before_training() -> None:
    mismatched = ["run", "small.yaml", "--set", "guide=[mean_field,hierarchical]"]
    refused(*mismatched, expected="guide: expected the latent sites of the model, ['z'], got ['z1', 'z2']")
    assert not Path("runs/small/study.yaml").exists()
    assert pyrovae("run", "small.yaml", "--set", "steps=2").returncode == 0  # the refused study left no files


USER_MODULE = """
import numpy
from torch import nn
from pyrovae.data import tetrominoes
from pyrovae.guides import MeanField
from pyrovae.models import VAE
from pyrovae.models.likelihoods import Bernoulli
from pyrovae.models.priors import StandardNormal
from pyrovae.networks import MLP
from pyrovae.programs.pair import Pair

print("user code runs")
data = tetrominoes.source

class Guide(MeanField): ...
class Likelihood(Bernoulli): ...
class Model(VAE): ...
class Bare(nn.Module):
    def __init__(self, event_shape): super().__init__()

def network(sizes, width: int = 16):
    return MLP(sizes.image, (width, width), sizes.encoder), MLP((sizes.latent,), (), sizes.decoder)

def pair(event_shape, latent_size):
    decoder = MLP((latent_size,), (8,), event_shape.numel())
    model = VAE(StandardNormal(latent_size), decoder, Bernoulli(event_shape))
    return Pair(model, MeanField(MLP(event_shape, (8,), 2 * latent_size), latent_size))
"""


@pytest.mark.long
def test_user_components_run_only_if_their_module_is_trusted() -> None:
    Path("mine.py").write_text(USER_MODULE, encoding="utf-8")
    components = (
        "data=mine:data",
        "guide=mine:Guide",
        "likelihood=mine:Likelihood",
        "model=mine:Model",
        "network=mine:network",
    )
    short = ["run", "small.yaml", "--set", "steps=2"]
    for component in (*components, "pair=mine:pair"):
        done = pyrovae(*short, "--set", component)
        assert "user code runs" not in done.stdout
        assert_refused(
            done, "would run code of the module mine, which is not trusted; if you trust it, add --trust mine"
        )
    done, shown, evaluated, pair, bare = run_commands(
        [*short, *set_each("depth=null", *components), "--trust", "mine", "--out", "components"],
        ["show", "components"],
        ["evaluate", "components", "--samples", "2", "--trust", "mine"],
        [*short, *set_each("pair=mine:pair", "depth=null", "width=null"), "--trust", "mine", "--out", "pair"],
        [*short, *set_each("likelihood=mine:Bare"), "--trust", "mine", "--out", "bare"],
    )
    assert (done.returncode, done.stdout.count("user code runs")) == (0, 1), done.stderr
    refused("evaluate", "components", "--samples", "2", expected="which is not trusted")
    assert "D test" in shown.stdout
    assert "user code runs" not in shown.stdout
    assert (evaluated.returncode, pair.returncode) == (0, 0), pair.stderr
    with pytest.raises(InputError, match="which is not trusted"):
        open_results("pair").pair(beta=1)
    assert np.isnan(open_results("pair").tree["rate_distortion/floor"]).all()
    assert_refused(bare, "likelihood: expected 'mine:Bare' to have 'event_shape', as every likelihood has")


def test_user_images_run_end_to_end() -> None:
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 2, size=(3, 7, 7)).repeat(4, 1).repeat(4, 2)
    labels = rng.integers(3, size=200)
    images = (shapes[labels] * rng.integers(100, 256, size=(200, 1, 1))).astype(np.uint8)
    np.savez("mine.npz", images=images, labels=labels)
    settings = ["data=mine.npz", "pixels=dynamic", "split=held_out", "held_out=[0,2]", "train_images=null", "steps=3"]
    settings += ["test_images=null", "network=conv_small", "warmup=0.5", "depth=1", "width=null", "measure.images=64"]
    done = pyrovae("run", "small.yaml", *set_each(*settings))
    assert done.returncode == 0, done.stderr
    counts = np.bincount(labels)
    assert f"training images of each class: 0: 0 1: {counts[1]} 2: {counts[2]}" in done.stdout
    assert f"test images of each class: 0: {counts[0]} 1: 0 2: 0" in done.stdout
    results = open_results("runs/small")
    assert results.tree["rate_distortion"].sizes["held_out"] == 2
    assert (results.tree["rate_distortion/floor"] == 0).all()
    assert set(results.tree["runs/distortion_kind"].values.flatten()) == {"negative log-probability"}
    np.savez("mine.npz", images=images[::-1], labels=labels)
    refused("evaluate", "runs/small", "--samples", "2", expected="but 'mine.npz' has different ones now")
    bits = results.tree["rate_distortion/bits_per_dim"] * 784 * np.log(2)
    np.testing.assert_allclose(bits, -results.tree["rate_distortion/elbo"])


@pytest.mark.usefixtures("one_figure")
def test_folders_of_classes_are_named(working_folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 4), np.uint8)
    for number, image in enumerate(pixels):
        place = working_folder / "photos" / ("cats" if number < 5 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    settings = ["data=photos/", "split=held_out", "held_out=1", "train_images=null", "test_images=null", "steps=2"]
    settings += ["depth=1", "beta=1", "batch_size=2", "background=black"]
    done = pyrovae("run", "small.yaml", *set_each(*settings))
    assert done.returncode == 0, done.stderr
    assert "  training images of each class: 0 (cats): 5 1 (dogs): 0\n" in done.stdout
    assert "0 cats, 1 dogs" in Path("runs/small/report.html").read_text(encoding="utf-8")
    assert "0 cats, " in pyrovae("show", "runs/small", "--provenance").stdout
    assert open_results("runs/small").study.base.settings["background"] == "black"


def test_folder_in_use_is_refused_and_interrupt_saves() -> None:
    folder = Path("runs/small")
    forever = ("run", "small.yaml", "--set", "steps=1000000", "--compile", "never")
    with started(*forever) as first:
        while not any(folder.glob("training/*.safetensors")):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.005)
        refused(*forever, expected=f"it is in use by process {first.pid} on {platform.node()}")
        first.send_signal(signal.SIGINT)
        output, _ = first.communicate()
    assert first.returncode == 130
    assert "the same command" in output.splitlines()[-1]
    (step,) = {load_header(file)[0].step for file in folder.glob("training/*.safetensors")}
    assert f"depth 1: 2 runs, all to continue from step {step:,};" in pyrovae(*forever, "--plan").stdout


INTERRUPTED_IMPORT = """
import os, runpy, signal, sys

class Interrupting:
    @staticmethod
    def find_spec(name, *_):
        if name == "pyrovae.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting)
runpy.run_module("pyrovae", run_name="__main__")
"""


def test_interrupt_before_the_command_is_imported_shows_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_swallowed_interrupt_comes_again() -> None:
    """But not while one is handled."""
    with mock.patch("os.kill") as kill:
        _insist()
        kill.assert_called_once_with(os.getpid(), signal.SIGINT)
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            _insist()
        assert kill.call_count == 1


def test_damaged_files_are_refused_in_one_line() -> None:
    def truncate(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:1000])

    short = ["run", "small.yaml", "--set", "steps=2"]
    assert pyrovae(*short).returncode == 0
    (cache, *_) = Path(platformdirs.user_cache_dir("pyrovae")).glob("images/*.safetensors")
    before = pyrovae("show", "runs/small")
    truncate(Path("runs/small/results.nc"))
    assert pyrovae("show", "runs/small").stdout == before.stdout
    (record, *_) = Path("runs/small").glob("runs/*/record.nc")
    truncate(record)
    shown = pyrovae("show", "runs/small", "caveats")
    assert (shown.returncode, shown.stderr.count("\n")) == (0, 1)
    assert f"{record}: expected results, but the file is damaged" in shown.stderr
    assert "1 of 4 runs are not done yet" in shown.stdout
    truncate(cache)
    truncate(record.with_name("weights.safetensors"))
    done = pyrovae(*short)
    assert done.returncode == 0
    assert f"{cache} is damaged" in done.stderr
    assert done.stderr.count("\n") == 3  # the record, the weights and the images
    assert (open_results("runs/small").tree["runs/status"] == "done").all()


def test_study_goes_on_in_its_folder() -> None:
    assert pyrovae("run", "small.yaml", *set_each("steps=2", "depth=1", "beta=1"), "--out", "here/mine").returncode == 0
    done = pyrovae("run", "here/mine", "--set", "steps=4")
    assert done.returncode == 0, done.stderr
    assert open_results("here/mine").tree["runs/step"].values.tolist() == [[4]]
    assert not Path("runs").exists()
    best = pyrovae("show", "here/mine", "best")
    assert (best.returncode, best.stdout) == (0, "")  # one value of β
    refused("run", "here", expected="or the path of a .yaml file or of a study's folder")
