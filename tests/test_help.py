"""Help: the run's, each command's, and the settings by section and key."""

import re

import pytest

from genfl_mpi.cli import COMMANDS, main
from genfl_mpi.cli.help import names
from genfl_mpi.config.describe import choices
from genfl_mpi.config.settings import Config, keys, section_in
from genfl_mpi.federation.algorithms import ALGORITHMS
from genfl_mpi.federation.policies.kappa import KAPPA

WITHOUT_MEANING = {"cpu", "cuda", "float32", "float16", "bfloat16"}  # and of diffusers


def show(arguments, capsys):
    assert main(["help", *arguments]) == 0
    return capsys.readouterr().out


def settings(section=Config, prefix=""):
    """Yield (section, dotted key, field) of each setting."""
    for name, field in section.model_fields.items():
        if inner := section_in(field.annotation):
            yield from settings(inner, f"{prefix}{name}.")
        else:
            yield section, prefix + name, field


@pytest.mark.parametrize("command", ["", *(name for name in COMMANDS if name != "run")])
def test_help_fits_a_terminal(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_help_of_the_run_is_short_and_names_all_commands(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 80
    assert all(re.search(rf"^  {name} +\w", text, re.MULTILINE) for name in COMMANDS)
    assert "genfl_mpi help kappa" in text and "installed script `genfl_mpi`" in text


def test_help_lists_every_section_on_one_line(capsys):
    text = show([], capsys)
    for name in Config.model_fields:
        assert re.search(rf"^  {name}[ =].*\S$", text, re.MULTILINE), name
    assert "..." not in text


@pytest.mark.parametrize("section", sorted({key.rpartition(".")[0] for key in keys()} - {""}))
def test_help_of_a_section_describes_every_setting(section, capsys):
    text = show([section], capsys)
    assert max(map(len, text.splitlines())) <= 80
    for _, key, field in settings():
        if key.rpartition(".")[0] == section:
            assert field.description and re.search(rf"^{re.escape(key)}=", text, re.MULTILINE), key


def test_help_of_a_setting_has_default_range_and_meaning(capsys):
    assert show(["kappa.kappa2"], capsys).startswith(
        "kappa.kappa2=0.2  (number from 0 to 1)\n"
        "    weight of the augmented model; setting one of the two is enough\n"
    )
    for key, kind in {
        "rounds": "  (integer of at least 1)",
        "training.momentum": "=0.0  (number of at least 0 below 1)",
        "training.epochs": "=5  (integer from 1 to 10000)",
        "partition.alpha": "=0.1  (number above 0)",
        "generation.size": "=null  (integer from 1 to 4096 or null)",
        "world.hardware.battery_kj": "=[20.0,60.0]  (two values, each number above 0)",
        "kappa.grid": "  (list, each number from 0 to 1)",
        "audit": "=false  (true or false)",
    }.items():
        assert show([key], capsys).splitlines()[0].startswith(key) and kind in show([key], capsys), key


def test_help_of_a_setting_names_what_it_needs(capsys):
    assert "    has an effect only with a network with BatchNorm\n" in show(["model.norm"], capsys)
    assert "has an effect only with clients that train\n" in show(["cohort"], capsys)


def test_help_of_a_name_without_its_section_finds_all_settings(capsys):
    text = show(["epochs"], capsys)
    assert all(f"{section}.epochs=" in text for section in ("training", "augmented", "finetuning", "probes"))


def test_every_name_has_a_meaning():
    for section, key, _ in settings():
        without = {name for name, meaning in choices(section, key, names).items() if not meaning}
        assert without <= WITHOUT_MEANING or key == "generation.save_memory", (key, without)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("kappa.policy", {name: policy.__doc__.splitlines()[0] for name, policy in KAPPA.items()}),
        ("algorithm.name", {name: algorithm.summary for name, algorithm in ALGORITHMS.items()}),
        ("method", {"fedavg": "clients train on their private data"}),
        ("generation.prompts", {"cifar10": "Prompts for CIFAR-10"}),
        ("generation.checkpoint", {"digits": "a text-to-image model of handwritten digits"}),
        ("model.name", {"module:function": "your own: function(classes, shape) -> torch.nn.Module"}),
    ],
)
def test_names_are_listed_where_they_are_set_with_their_meaning(key, expected, capsys):
    text = " ".join(show([key], capsys).split())
    for name, meaning in expected.items():
        assert f"{name} {' '.join(meaning.split())}" in text


def test_help_of_a_command_and_of_a_setting_of_the_same_name(capsys):
    assert "plot is a command: python -m genfl_mpi plot --help" in show(["plot"], capsys)
    text = show(["hindsight"], capsys)
    assert "hindsight.every=" in text and "hindsight is a command" in text


def test_help_of_an_unknown_topic_suggests_one(capsys):
    assert main(["help", "kapa"]) == 2
    assert "kapa is neither a setting nor a command; did you mean kappa?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shw", "a.h5"], "genfl_mpi: shw is neither a command nor a file; did you mean show? `python -m"),
        (["xyzzy"], "genfl_mpi: xyzzy is neither a command nor a file. `python -m genfl_mpi --help` lists"),
        (["rounds"], "write a setting as rounds=value"),
        (["nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_a_misspelt_command_is_answered_with_the_closest(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "closest"),
    [
        (["plot", "--figure", "accurcy", "a.h5"], "accuracy"),
        (["export", "--table", "client", "a.h5"], "clients"),
    ],
)
def test_a_misspelt_choice_of_an_option_is_answered_with_the_closest(arguments, closest, capsys):
    assert main(arguments) == 2
    assert f"did you mean {closest}?" in capsys.readouterr().err


def test_ranks_are_asked_of_the_launcher(capsys):
    assert main(["-n", "4", "rounds=1"]) == 2
    assert "write mpirun -n RANKS python -m genfl_mpi" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("--rounds=3", "write rounds=3"),
        ("--training.lr", "write training.lr=VALUE"),
        ("--quite", "did you mean --quiet?"),
    ],
)
def test_a_setting_with_dashes_is_answered_with_its_form(argument, hint, capsys):
    assert main([argument]) == 2
    error = capsys.readouterr().err
    assert f"unrecognized arguments: {argument}" in error and hint in error
