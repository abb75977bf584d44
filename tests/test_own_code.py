"""Functions of the user's: what is wrong with them is one line, and a changed file is another run."""

import re
import sys

import numpy as np
import pytest

from genfl_mpi import Simulation, UserError
from genfl_mpi.cli import main
from genfl_mpi.config.functions import USER_FUNCTION_SETTINGS, USER_FUNCTIONS
from genfl_mpi.config.settings import keys
from genfl_mpi.mpi import collectives, failing
from genfl_mpi.util import streams

OWN_CODE = """
import numpy as np
import torch
from torch import nn

def share(state):
    return 0.5

def floats(state):
    return np.arange(state.config.cohort) + 0.5

def names(state):
    return ["client 1", "client 2", "client 3"]

def two(state):
    return np.array([0.1, 0.2])

def word(state):
    return "much"

def many_classes(classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes + 1))

def wrong_size(classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))

def silent(classes, shape):
    class Silent(nn.Module):
        def forward(self, images):
            raise ValueError
    return Silent()

def pair(classes, shape):
    class Pair(nn.Module):
        def forward(self, images):
            return images, images
    return Pair()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    path = tmp_path / "own_code.py"
    path.write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_code", raising=False)
    return path


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("selection.policy=own_code:floats", "must return 3 client ids, integers"),
        ("selection.policy=own_code:names", "must return 3 client ids, integers"),
        ("kappa.policy=own_code:two", "as a number"),
        ("kappa.policy=own_code:word", "returned 'much'; kappa2 must lie in .*, as a number"),
        (
            "model.name=own_code:many_classes",
            r"must return logits \(n, 10\), but returns \(2, 11\) for 2 images",
        ),
        (
            "model.name=own_code:wrong_size",
            r"own_code:wrong_size cannot be trained on images of "
            r"1 x 28 x 28 \(channels, height, width\): .*; correct its layers",
        ),
        ("model.name=own_code:pair", "returns tuple"),
        (
            "model.name=own_code:silent",
            r"cannot be trained on images of .*: ValueError \(own_code.py, line 30\); correct its",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tiny, mine, setting, message):
    with pytest.raises(UserError, match=message):
        list(Simulation(overrides=[*tiny, setting]))


@pytest.mark.parametrize("policy", ["selection.policy=own_code:names", "kappa.policy=own_code:word"])
def test_what_a_policy_returned_is_reported_with_its_round(tiny, mine, policy, capsys):
    late = policy.replace(":", ":late_")
    for name in ("names", "word"):
        mine.write_text(
            mine.read_text()
            + f"""
def late_{name}(state):
    if state.round == 1:
        return {name}(state)
    return np.arange(3) if "{name}" == "names" else 0.5
"""
        )
    assert main([*tiny, late]) == 2
    assert re.match(r"genfl_mpi: round 2: the (selection|kappa) policy .* ", capsys.readouterr().err)


def test_a_policy_without_what_it_uses_gets_the_decorator_to_add(tiny, mine):
    mine.write_text(OWN_CODE + "def better(state):\n    return state.judge(state.weights)[0]\n")
    with pytest.raises(TypeError, match=r'state.judge needs @needs\("validation"\) above the policy'):
        list(Simulation(overrides=[*tiny, "kappa.policy=own_code:better"]))


WRONG = """
from genfl_mpi.data.datasets import Description
from genfl_mpi.federation.algorithms.interface import Algorithm

def nothing():
    pass

def reader(data):
    return Description(("a", "b"), (1, 8, 8), 60, (0.5,), (0.5,)), lambda path: {}

ALGORITHM = Algorithm("mine", stages=lambda client: [])
"""


@pytest.mark.parametrize("setting", [*USER_FUNCTIONS, "later runs"])
def test_a_wrong_signature_is_refused_before_any_run_starts(setting, tiny, mine, tmp_path, capsys):
    mine.write_text(WRONG)
    key = "partition.scheme" if setting == "later runs" else setting
    given = {
        "transforms": "transforms=[own_code:nothing]",
        "composition.use": "composition.use=[own_code:nothing]",
        "hindsight.policies": "hindsight.policies=[own_code:nothing]",
        "later runs": "sweep.partition.scheme=[iid,own_code:nothing]",
    }.get(setting, f"{setting}=own_code:nothing")
    assert main([*tiny, "hindsight.every=1", "clients=6", given]) == 2
    expected = ", ".join(USER_FUNCTIONS[key].parameters)
    assert capsys.readouterr().err == (
        f"genfl_mpi: {key}: own_code:nothing has the parameters (), but is called with ({expected}); "
        "change its parameters\n"
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "algorithm.name=own_code:ALGORITHM",
            "algorithm.name: stages of own_code:ALGORITHM has the parameters (client), but is called with "
            "(client, omega, arrays, own, config)",
        ),
        (
            "data.name=own_code:reader",
            "the function that reads the arrays of own_code:reader has the parameters (path)",
        ),
    ],
)
def test_a_wrong_function_of_an_object_is_refused(setting, message, tiny, mine, capsys):
    mine.write_text(WRONG)
    assert main([*tiny, setting]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "\nunknown()\n",
            "cannot be imported: NameError: name 'unknown' is not defined (own_code.py, line 2)",
        ),
        ("def better(state): pass\n", "cannot be imported: own_code has no bettr; did you mean better?"),
    ],
)
def test_a_function_that_cannot_be_imported_is_located(code, message, tiny, mine, capsys):
    mine.write_text(code)
    assert main([*tiny, "kappa.policy=own_code:bettr"]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_module_is_answered_with_where_it_is_sought(tiny, capsys):
    assert main([*tiny, "kappa.policy=no_such_module:f"]) == 2
    assert (
        "start in the folder of no_such_module.py, or add that folder to PYTHONPATH"
        in capsys.readouterr().err
    )


def test_the_installed_script_finds_modules_in_the_current_folder(tiny, tmp_path, monkeypatch, capsys):
    """Python starts it with the script's folder in the path instead."""
    (tmp_path / "beside_the_run.py").write_text("def share(state, round): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["genfl_mpi", *tiny, "kappa.policy=beside_the_run:share"])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    assert main() == 2
    assert "kappa.policy: beside_the_run:share has the parameters (state, round)" in capsys.readouterr().err


def test_a_function_that_raises_shows_its_own_frames_and_one_line(tiny, mine, capsys):
    """Neither frames of this package, nor of a library that the function calls."""
    mine.write_text(
        "import numpy as np\ndef inner():\n    return np.concatenate([])\ndef crash(state):\n    inner()\n"
    )
    assert main([*tiny, "kappa.policy=own_code:crash"]) == 1
    said = capsys.readouterr().err
    files = re.findall(r'File "(.*)", line (\d+)', said)
    assert files == [(str(mine), "5"), (str(mine), "3")] and "Traceback" not in said
    assert said.splitlines()[-1].endswith(
        "round 1, the kappa policy crash: ValueError: need at least one array to concatenate"
    )


def test_an_error_of_the_package_keeps_its_traceback(capsys):
    def fail():
        return collectives.world().no_such_method()

    fail.__code__ = fail.__code__.replace(co_filename=failing.__file__)
    assert failing.exit_status(collectives.world(), fail) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_changed_function_is_another_run(tiny, mine, capsys):
    """Finished or not, its results are of the file as it was; a start without a round binds nobody."""
    run = [*tiny, "kappa.policy=own_code:share"]
    assert main([*run, "method=genfl", "rounds=1"]) == 0
    assert main([*run, "method=genfl", "rounds=1"]) == 0 and "already finished" in capsys.readouterr().out
    mine.write_text(OWN_CODE.replace("0.5", "0.25"))
    for rounds in ("rounds=1", "rounds=2"):
        assert main([*run, "method=genfl", rounds]) == 2
        said = capsys.readouterr().err
        assert f"kappa.policy: {mine} has changed since the run began; restore it" in said


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("selection.policy=own_code:crash", "the selection policy crash"),
        ("rho.policy=own_code:crash", "the rho policy crash"),
        ("kappa.policy=own_code:crash", "the kappa policy crash"),
        ("generation.plan=own_code:crash", "generation.plan crash"),
        ("data.name=own_code:crash_early", "data.name own_code:crash_early"),
        ("data.name=own_code:crash_later", "data.name own_code:crash_later"),
        ("partition.scheme=own_code:divide", "partition.scheme own_code:divide"),
        ("generation.checkpoint=own_code:draw", "generation.checkpoint own_code:draw"),
    ],
)
def test_a_function_that_raises_is_named(setting, named, tiny, mine, capsys):
    mine.write_text(f"""{OWN_CODE}
from genfl_mpi.data.datasets import Description
def crash(*arguments):
    raise LookupError('nobody is chosen')
def crash_early(data):
    crash()
def crash_later(data):
    return Description(tuple("0123456789"), (1, 8, 8), 60, (0.5,), (0.5,)), crash
def divide(labels, clients, classes, settings, rng):
    crash()
def draw(batch, shape):
    crash()
""")
    assert main([*tiny, "method=genfl", setting]) == 1
    said = capsys.readouterr().err
    assert f"{named}: LookupError: nobody is chosen" in said and "own_code.py" in said


def test_a_run_does_not_go_on_with_other_data(fast, tmp_path, monkeypatch, capsys):
    """Neither it nor a fork of it; its function's file is as it was."""
    (tmp_path / "own_images.py").write_text("""
from pathlib import Path
import numpy as np
from genfl_mpi.data.datasets import Description
def stored(data):
    def read():
        with np.load(data.root) as arrays:
            return dict(arrays)
    return Description(("even", "odd"), (1, 8, 8), 60, (0.5,), (0.5,)), read
""")
    monkeypatch.syspath_prepend(tmp_path)
    arrays = {
        f"{part}_{kind}": values
        for part in ("train", "test")
        for kind, values in (
            ("images", np.arange(60 * 64, dtype=np.uint8).reshape(60, 1, 8, 8)),
            ("labels", np.arange(60) % 2),
        )
    }
    np.savez(tmp_path / "own.npz", **arrays)
    run = [
        *fast,
        "data.name=own_images:stored",
        f"data.root={tmp_path}/own.npz",
        "partition.scheme=iid",
        "checkpoint.keep=1",
    ]
    results = tmp_path / "results/fedavg_seed1.h5"
    assert main([*run, "rounds=1"]) == 0 and main([*run, "rounds=2"]) == 0
    arrays["test_images"][0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "own.npz", **arrays)
    capsys.readouterr()
    assert main([*run, "rounds=3"]) == 2
    refusal = (
        f"{results}: data: the data set data.name=own_images:stored in data.root={tmp_path}/own.npz "
        "has changed since the run began"
    )
    assert refusal in capsys.readouterr().err
    assert main(["fork", str(results), "--at", "1", "training.lr=0.01"]) == 2
    assert refusal in capsys.readouterr().err


def test_a_start_that_came_to_nothing_binds_nobody(tiny, mine, capsys):
    assert main([*tiny, "method=genfl", "kappa.policy=own_code:word"]) == 2
    assert main([*tiny, "method=genfl", "kappa.policy=own_code:share", "rounds=1"]) == 0


def test_every_setting_that_names_a_function_is_watched():
    assert set(USER_FUNCTION_SETTINGS) <= set(keys())


def test_purposes_of_ones_own():
    def draw(purpose, *position):
        return streams.generator(1, purpose, *position).random()

    assert draw("turns", 3) == draw("turns", 3)
    assert len(
        {draw("turns"), draw("turns", 3), draw("turn", 3), *(draw(purpose) for purpose in streams.PURPOSES)}
    ) == 3 + len(streams.PURPOSES)
