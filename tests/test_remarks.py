"""What is printed about a configuration before its runs start."""

from pathlib import Path

import pytest

from genfl_mpi.cli import main
from genfl_mpi.config import loading
from genfl_mpi.config.remarks import remarks
from genfl_mpi.config.settings import section_in
from genfl_mpi.config.types import Needs

CONFIGS = Path(__file__).parent.parent / "configs"


def remarks_on(source, *overrides):
    return list(remarks(source, overrides, loading.load(source, overrides)))


@pytest.mark.parametrize(
    ("overrides", "sets"),
    [
        ([], "sweep.method=[fedavg,genfl,aigc] generation.cap=30"),
        (["sweep.method=[genfl,aigc]"], "generation.cap=30"),
        (["method=genfl"], "generation.cap=30"),
        (["generation={cap: 5}"], "sweep.method=[fedavg,genfl,aigc]"),
        (["method=genfl", "generation.cap=5"], None),
        (["method=fedavg"], None),
    ],
)
def test_the_default_study_says_what_it_sets_beyond_the_overrides(overrides, sets):
    expected = [] if sets is None else [f"default study, without a configuration file: {sets}"]
    assert remarks_on(None, *overrides) == expected


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ("model.name=lenet5 model.norm=group", "model.norm (needs a network with BatchNorm)"),
        (
            "kappa.kappa2=0.3 rho.gamma=2",
            "kappa.kappa2 (needs clients that train and an augmented model); rho.gamma (needs rho.pol",
        ),
        ("partition.shards=1000000", "partition.shards (needs partition.scheme=shards)"),
        ("generation.steps=3 generation.bank=b", "generation.steps, generation.bank (need generated images)"),
        ("training.decay=0.5", "training.decay (needs training.schedule=exponential or step)"),
        ("algorithm.tau=0.1", "algorithm.tau (needs algorithm.name=fedadam or fedyogi)"),
        ("transforms=[my:own] clipping.norm=2", None),
        ("clipping.norm=2", "clipping.norm (needs transforms=[clip])"),
        ("probes.every=99 probes.clients=3", "probes.every (needs at least as many rounds)"),
        ("method=aigc cohort=4", "cohort (needs clients that train)"),
        ("method=matched generation.cap=7 augmented.epochs=2", None),
        ("method=genfl kappa.policy=linear kappa.end=0.1", None),
        ("method=genfl kappa.end=0.1", "kappa.end (needs kappa.policy=linear, cosine, exponential or step)"),
        ("method=genfl kappa.end=0.1 hindsight.every=1", None),
        (
            "method=filled generation.per_round=3",
            "generation.per_round (needs images generated at the server)",
        ),
        (
            "method=genfl generation.checkpoint=my:own generation.steps=3",
            "generation.steps (needs a pipeline as",
        ),
        ("algorithm.name=my:own algorithm.mu=3 data.root=x", "data.root (needs a data set in a folder)"),
        ("sweep.method=[fedavg,genfl] kappa.kappa2=0.3", None),
        ("sweep.kappa.kappa2=[0.1,0.2]", "kappa.kappa2 (needs clients that train and"),
        ("sweep.model.name=[cnn,resnet18] model.norm=group", None),
    ],
)
def test_settings_without_effect_are_named(given, warning):
    """A sweep's setting has an effect if it has one in any run."""
    found = remarks_on({"method": "fedavg"}, *given.split(" "))
    assert len(found) == (warning is not None)
    assert not found or found[0].startswith(f"warning: settings without effect: {warning}")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_configuration_has_no_setting_without_effect(path):
    assert remarks_on(path) == []


def test_a_file_for_several_methods_is_not_blamed_for_the_choice_of_one():
    path = CONFIGS / "cifar10.yaml"
    assert remarks_on(path, "method=fedavg") == []
    assert remarks_on(path, "method=fedavg", "generation.steps=3") == [
        "warning: settings without effect: generation.steps (needs generated images)"
    ]
    file = {"method": "fedavg", "kappa": {"kappa2": 0.3}}
    assert remarks_on(file) == remarks_on(file, "rounds=3") != []


def test_what_a_setting_needs_can_be_checked_in_every_run():
    """The marks of all settings name settings and properties that exist."""
    runs = [loading.single({"method": "genfl"}), loading.single({"method": "fedavg"})]

    def marks(section, run):
        for name, field in type(section).model_fields.items():
            yield from ((mark, section, run) for mark in field.metadata if isinstance(mark, Needs))
            if section_in(field.annotation) and getattr(section, name) is not None:
                yield from marks(getattr(section, name), run)

    found = [mark.holds(run, section) for one in runs for mark, section, run in marks(one, one)]
    assert len(found) > 100 and {*found} == {True, False}


def test_a_run_starts_with_the_warning(fast, capsys):
    assert main([*fast, "rounds=1", "model.norm=group"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "warning: settings without effect: model.norm (needs a network with BatchNorm)"
    assert not [line for line in others if "warning" in line]


def test_a_fork_warns_of_its_overrides(fast, tmp_path, capsys):
    assert main([*fast, "rounds=2", "checkpoint.keep=1", "partition.shards=3"]) == 0
    capsys.readouterr()
    assert main(["fork", f"{tmp_path}/results/fedavg_seed1.h5", "--at", "1", "kappa.kappa2=0.5"]) == 0
    assert capsys.readouterr().out.startswith("warning: settings without effect: kappa.kappa2 (needs clients")
