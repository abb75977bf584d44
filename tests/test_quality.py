"""The measures of generated images, where their values are known."""

import numpy as np
import pytest
import torch

from genfl_mpi.cli import main
from genfl_mpi.config import loading
from genfl_mpi.data import datasets
from genfl_mpi.generation import classifier
from genfl_mpi.generation.bank import Bank, Batch
from genfl_mpi.generation.quality import Judge, frechet

ABOUT = datasets.DESCRIPTIONS["mnist5k"]
RNG = np.random.default_rng(0)

# Of a bank whose images no generator makes here.
SETTINGS = {
    "checkpoint": "0" * 64,
    "adapter": None,
    "steps": 1,
    "guidance": 7,
    "scheduler": None,
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def real():
    return datasets.load(loading.single({"method": "genfl"}).data)


@pytest.fixture(scope="module")
def judge(real):
    return Judge(real, ABOUT, loading.single(overrides=["method=genfl"]), torch.device("cpu"))


def test_frechet_distance_by_hand():
    # Two normal clouds on a line of each axis: means differ by 3, deviations are 1 and 2.
    one, other = RNG.normal(0, 1, (20000, 3)), RNG.normal([3, 0, 0], [2, 1, 1], (20000, 3))
    assert frechet(one, other) == pytest.approx(9 + (2 - 1) ** 2, rel=0.05)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_real_images_pass_for_real(judge, real):
    """Real training images, judged as if they were generated."""
    chosen = np.concatenate([np.flatnonzero(real["train_labels"] == c)[:40] for c in range(10)])
    measured = judge.measure(real["train_images"][chosen], real["train_labels"][chosen])
    assert all(len(values) == 11 for values in measured.values())
    assert measured["cas"][-1] > 80 and measured["fidelity"][-1] > 95
    assert 0.4 < measured["auc"][-1] < 0.7
    assert 0.85 < measured["diversity"][-1] < 1.15
    assert measured["theta"][-1] < 0.05
    noise = judge.measure(RNG.integers(0, 256, (200, 1, 28, 28), dtype=np.uint8), np.arange(200) % 10)
    assert noise["cas"][-1] < 40 and noise["fidelity"][-1] < 40 and noise["auc"][-1] > 0.95
    assert noise["frechet"][-1] > 10 * measured["frechet"][-1] and noise["theta"][-1] > measured["theta"][-1]


@pytest.mark.slow
def test_wrong_labels_are_seen(judge, real):
    chosen = np.concatenate([np.flatnonzero(real["train_labels"] == c)[:40] for c in range(10)])
    labels = real["train_labels"][chosen].copy()
    labels[labels == 3] = 99
    labels[labels == 8] = 3
    labels[labels == 99] = 8
    measured = judge.measure(real["train_images"][chosen], labels)
    assert measured["fidelity"][3] < 10 and measured["fidelity"][8] < 10 and measured["fidelity"][0] > 95
    assert measured["cas"][3] < 20 and measured["cas"][0] > 80


@pytest.mark.slow
def test_copies_of_one_image_have_no_diversity(judge, real):
    first = [np.flatnonzero(real["train_labels"] == c)[0] for c in range(10)]
    measured = judge.measure(np.repeat(real["train_images"][first], 10, axis=0), np.repeat(np.arange(10), 10))
    assert measured["diversity"][-1] < 1e-3


def test_copies_of_public_images_are_seen(real, monkeypatch):
    """Half of the training images are public; their copies, mirrored or not, differ from similar images."""
    monkeypatch.setattr(classifier, "STEPS", 50)  # how well its classifiers read does not matter here
    images, labels = real["train_images"], real["train_labels"]
    order = np.random.default_rng(1).permutation(len(labels))
    public, other = order[:2000], order[2000:2500]
    judge = Judge(
        real,
        ABOUT,
        loading.single(overrides=["method=genfl", "training.epochs=1"]),
        torch.device("cpu"),
        images[public],
    )

    fresh, copied = images[other], images[public[:50]]
    changed = np.clip(copied.astype(int) + RNG.integers(-2, 3, copied.shape), 0, 255).astype(np.uint8)
    assert judge.copies(fresh).mean() < 0.04, "about one in a hundred by chance"
    for made in (copied, copied[..., ::-1], changed):
        assert judge.copies(made).all()
    assert np.isnan(judge.measure(fresh, labels[other], generated=False)["copies"]).all()
    assert judge.measure(np.concatenate([fresh, copied]), labels[[*other, *public[:50]]])["copies"][
        -1
    ] == pytest.approx(100 * (50 + judge.copies(fresh).sum()) / 550)


@pytest.mark.slow
def test_the_filter_drops_what_does_not_look_like_its_label(tmp_path, tiny, capsys, real, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 300)
    chosen = np.concatenate([np.flatnonzero(real["train_labels"] == c)[-12:] for c in range(10)])
    labels = real["train_labels"][chosen].copy()
    labels[::12] = (labels[::12] + 1) % 10  # one image of each class under a wrong label
    Bank(tmp_path / "bank", SETTINGS).write(batch(labels.tolist()), real["train_images"][chosen])
    arguments = ["quality", str(tmp_path / "bank"), *tiny, "--counts", "5", "data.public_pool=1000"]
    assert main([*arguments, "generation.min_fidelity=0.3"]) == 0
    kept = int(capsys.readouterr().out.partition("the filter keeps ")[2].split()[0])
    assert 95 <= kept <= 110
    assert main([*arguments, "generation.min_fidelity=1"]) == 2
    assert "lower generation.min_fidelity" in capsys.readouterr().err


def batch(labels):
    return Batch(tuple(labels), (0,) * len(labels), tuple(range(len(labels))), ("a",) * len(labels))


def test_quality_prints_and_draws_how_good_a_banks_images_are(tmp_path, tiny, capsys, real, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 100)
    chosen = np.concatenate([np.flatnonzero(real["train_labels"] == c)[:12] for c in range(10)])
    Bank(tmp_path / "bank", SETTINGS).write(
        batch(real["train_labels"][chosen].tolist()), real["train_images"][chosen]
    )
    assert main(["quality", str(tmp_path / "bank"), *tiny, "--counts", "5,300"]) == 0
    said = capsys.readouterr().out
    assert "\n5  " in said and "\n12  " in said and "cas" in said
    assert (tmp_path / "bank/quality.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((20, 3, 32, 32), range(20), "give the CONFIG of their data set"),
        ((20, 1, 28, 28), range(20), "label 19 is unknown"),
        ((10, 1, 28, 28), range(10), "every class needs two"),
        (None, None, "it contains no images"),
    ],
)
def test_banks_that_cannot_be_judged(tmp_path, tiny, capsys, images, labels, message):
    if images:
        Bank(tmp_path, SETTINGS).write(batch(labels), np.zeros(images, np.uint8))
    assert main(["quality", str(tmp_path), *tiny]) == 2
    assert message in capsys.readouterr().err


def test_files_that_are_no_images(tmp_path, tiny, capsys):
    (tmp_path / "some.h5").write_text("no HDF5")
    assert main(["quality", str(tmp_path), *tiny]) == 2
    assert "damaged or not a file of a bank" in capsys.readouterr().err
    assert main(["quality", str(tmp_path), *tiny, "--counts", "many"]) == 2
    assert "--counts many" in capsys.readouterr().err
