"""A text task, the language of a word: the round, its files and its commands are not tied to images."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.data import datasets
from genfl_mpi.edge.trace import image_bytes
from genfl_mpi.util.errors import UserError

FOLDER = Path(__file__).parent.parent / "configs" / "words"
FEW = [
    str(FOLDER / "words.yaml"),
    "method=genfl",
    "rounds=2",
    "clients=5",
    "cohort=2",
    "training.epochs=1",
    "runtime.threads=1",
    f"generation.prompts={FOLDER}/prompts.yaml",
    "generation.per_round=3",
]


@pytest.fixture
def words(monkeypatch, tmp_path):
    """The module of the task with short word lists, from wordfreq or, without it, made up."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "words", raising=False)
    if importlib.util.find_spec("wordfreq") is None:
        vowels = {"de": "e", "en": "o", "es": "a", "fr": "u", "it": "i", "nl": "y"}
        made = types.ModuleType("wordfreq")
        made.top_n_list = lambda language, n: [
            f"{a}{vowels[language]}{b}{vowels[language]}" for a in "bcdfghklmn" for b in "prstvwxz"
        ]
        monkeypatch.setitem(sys.modules, "wordfreq", made)
    import words

    monkeypatch.setattr(words, "WORDS", 60)
    monkeypatch.setattr(words, "PUBLIC", 20)
    return words


def test_words_become_samples_and_back(words):
    texts = ["was", "straße", "été"]
    assert datasets.decode_texts(words.encode(texts), words.ALPHABET) == texts
    arrays = words.read_words()
    assert arrays["train_images"].shape == (6 * 50, words.LENGTH) and len(arrays["test_labels"]) == 60


def test_a_run_on_texts_from_start_to_show(words, tmp_path, capsys):
    run = [*FEW, f"output={tmp_path}", f"generation.bank={tmp_path}/bank"]
    assert main(run) == 0
    capsys.readouterr()
    assert main(["show", f"{tmp_path}/genfl_seed1.h5"]) == 0
    output = capsys.readouterr().out
    assert all(f"generated, {name}: " in output for name in words.LANGUAGES.values())
    first = output.partition("generated, German: ")[2].split(",")[0].split()[0]
    assert set(first) <= set(words.LETTERS)
    for command in ("report", "summary"):
        assert main([command, str(tmp_path)]) == 0
    assert main(["plot", f"{tmp_path}/genfl_seed1.h5", "--figure", "images"]) == 2
    assert "its samples are not images; `python -m genfl_mpi show` prints texts" in capsys.readouterr().err


def test_every_method_with_a_generator_runs_on_texts(words, tmp_path):
    for method in ("sent", "filled"):
        settings = [one for one in FEW[1:] if not one.startswith("method=")]
        simulation = Simulation(FEW[0], [*settings, f"method={method}", f"generation.bank={tmp_path}"])
        assert [record.round for record in simulation] == [1, 2]


@pytest.mark.parametrize(
    "setting, message",
    [
        (
            "training.flip=true",
            "training.crop and training.flip change images, and the samples of words:languages",
        ),
        ("model.name=cnn", "model.name: cnn cannot be trained on samples of 12"),
        ("model.input_size=8", "model.input_size=8 resizes images, and samples have shape"),
        ("generation.checkpoint=digits", "generation.checkpoint: digits generates images"),
        (
            "misbehaving_clients.share=0.5 misbehaving_clients.kind=blurred",
            "misbehaving_clients.kind=blurred degrades images",
        ),
    ],
)
def test_settings_of_images_are_refused_for_texts(words, setting, message, tmp_path):
    given = [*FEW[1:], f"generation.bank={tmp_path}", *setting.split()]
    with pytest.raises(UserError, match=message):
        Simulation(single(FEW[0], given))


def test_a_sent_word_takes_a_byte_a_letter():
    assert image_bytes(types.SimpleNamespace(shape=(12,), image_size=2.0), None) == 24
