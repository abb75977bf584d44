"""Data sets, partitions, label sharing."""

import dataclasses
import itertools
import os
import pickle
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genfl_mpi.cli import main
from genfl_mpi.config import loading
from genfl_mpi.config.sections.samples import Data, LabelSharing, Partition
from genfl_mpi.data import datasets, label_files, public
from genfl_mpi.data.clients import client_data, load_and_divide
from genfl_mpi.data.corruption import degrade
from genfl_mpi.data.labels import earth_movers_distance, label_histograms, share_labels
from genfl_mpi.data.partition import partition
from genfl_mpi.util.errors import UserError

LABELS = np.repeat(np.arange(10), 400)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 1000.0])
@pytest.mark.parametrize("clients", [3, 20, 100])
def test_every_sample_has_one_client_and_every_client_the_minimum(alpha, clients):
    pointers, indices = partition(LABELS, clients, 10, Partition(alpha=alpha, min_samples=10), seed=3)
    assert sorted(indices) == list(range(len(LABELS)))
    assert pointers[0] == 0 and pointers[-1] == len(LABELS)
    assert np.diff(pointers).min() >= 10


def test_a_class_without_samples_is_allowed():
    for clients in (1, 3):
        pointers, indices = partition(LABELS, clients, 11, Partition(), seed=1)
        assert sorted(indices) == list(range(len(LABELS)))


def test_a_client_that_shares_is_known_even_if_noise_cancels_its_counts():
    shared, sharing = share_labels(
        np.eye(10, dtype=np.int32).repeat(100, 0),
        LabelSharing(payload="presence", epsilon=4.0, refusal_rate=0.2),
        1,
    )
    assert sharing.sum() == 800 and not shared[~sharing].any() and not shared[sharing].any(1).all()
    shared, _ = share_labels(HISTOGRAMS, LabelSharing(epsilon=1e-9), 1)
    assert shared.min() >= 0


def test_a_smaller_alpha_gives_more_skew():
    def emd(alpha):
        pointers, indices = partition(LABELS, 20, 10, Partition(alpha=alpha), seed=0)
        return earth_movers_distance(label_histograms(LABELS[indices], pointers, 10)).mean()

    assert emd(0.1) > 1.0 > emd(1.0) > 0.3 > emd(1000)


def test_iid_is_even():
    pointers, indices = partition(LABELS, 20, 10, Partition(scheme="iid"), seed=0)
    assert set(np.diff(pointers)) == {200}
    assert earth_movers_distance(label_histograms(LABELS[indices], pointers, 10)).max() < 0.6


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "dirichlet_client", "shards", "classes"])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_scheme_divides_the_samples(scheme, seed):
    pointers, indices = partition(LABELS, 20, 10, Partition(scheme=scheme), seed)
    assert sorted(indices) == list(range(len(LABELS))) and len(pointers) == 21
    assert all((np.diff(indices[a:b]) > 0).all() for a, b in zip(pointers[:-1], pointers[1:])), (
        "in rising order within a client"
    )
    again = partition(LABELS, 20, 10, Partition(scheme=scheme), seed)
    assert np.array_equal(again[1], indices) and not np.array_equal(
        partition(LABELS, 20, 10, Partition(scheme=scheme), seed + 2)[1], indices
    )


def histograms_of(settings, clients=20, labels=LABELS):
    pointers, indices = partition(labels, clients, labels.max() + 1, settings, seed=1)
    return label_histograms(labels[indices], pointers, labels.max() + 1)


def test_shards_match_a_hand_computed_example():
    # 8 samples of 4 labels, 2 clients with 2 shards of 2 samples each: a shard is a label.
    histograms = histograms_of(
        Partition(scheme="shards", min_samples=1), 2, np.array([3, 1, 0, 2, 2, 0, 1, 3])
    )
    assert (np.sort(histograms, axis=1) == [0, 0, 2, 2]).all() and histograms.sum(0).tolist() == [2, 2, 2, 2]


def test_each_client_holds_k_classes_evenly():
    histograms = histograms_of(Partition(scheme="classes", classes_per_client=3))
    assert ((histograms > 0).sum(1) == 3).all()
    assert (histograms[histograms > 0] >= 400 // 6 - 1).all(), "60 places for 10 labels: six holders each"
    with pytest.raises(UserError, match="the data set has 10 classes"):
        histograms_of(Partition(scheme="classes", classes_per_client=11))


@pytest.mark.parametrize("alpha", [0.01, 1000.0])
def test_dirichlet_client_gives_equal_sizes(alpha):
    histograms = histograms_of(Partition(scheme="dirichlet_client", alpha=alpha))
    assert (histograms.sum(1) == 200).all()
    assert (earth_movers_distance(histograms).mean() > 1.6) == (alpha == 0.01)


@pytest.mark.parametrize(
    ("scheme", "alpha", "least", "most"),
    [("iid", 1, 0, 0.6), ("dirichlet_client", 0.01, 1.7, 2), ("classes", 1, 1.6, 1.6)],
)
def test_with_replacement_there_may_be_more_clients_than_samples(scheme, alpha, least, most):
    histograms = histograms_of(Partition(scheme=scheme, alpha=alpha, replacement=True, samples=20), 5000)
    assert histograms.shape == (5000, 10) and (histograms.sum(1) == 20).all()
    assert histograms.sum(0) == pytest.approx([10000] * 10, rel=0.1)
    assert least - 0.01 <= earth_movers_distance(histograms).mean() <= most + 0.01


def test_groups_of_a_file_are_clients(tmp_path):
    file = tmp_path / "writers.txt"
    file.write_text("\n".join(f"writer {i % 25}" for i in range(len(LABELS))) + "\n")
    pointers, indices = partition(LABELS, 20, 10, Partition(scheme="groups", groups=str(file)), seed=1)
    assert (np.diff(pointers) == 160).all() and len(set(indices)) == 3200
    assert all(len(set(indices[a:b] % 25)) == 1 for a, b in zip(pointers[:-1], pointers[1:]))
    for text, clients, message in (
        ("a\nb", 2, "has 2 lines, but 4000 training samples are divided"),
        (file.read_text(), 26, "25 groups, fewer than clients=26"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            partition(LABELS, clients, 10, Partition(scheme="groups", groups=str(file)), seed=1)
    with pytest.raises(UserError, match="needs partition.groups"):
        partition(LABELS, 20, 10, Partition(scheme="groups"), seed=1)


def test_a_client_with_too_few_samples_is_named():
    file_of_two = np.array([0] * 30 + [1])
    with pytest.raises(
        UserError, match="leaves client . with [01] samples, fewer than partition.min_samples=2"
    ):
        partition(file_of_two, 2, 2, Partition(scheme="classes", classes_per_client=1, min_samples=2), seed=1)


def test_more_clients_than_samples_is_an_error():
    with pytest.raises(UserError, match="use fewer clients or a smaller minimum, or draw with replacement"):
        partition(LABELS, 401, 10, Partition(min_samples=10), seed=0)


def test_histograms_and_emd_match_hand_computed_values():
    # Two clients: samples 0, 1, 2 with labels 0, 0, 1 and samples 3, 4, 5 with labels 1, 2, 2.
    histograms = label_histograms(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 3, 6]), 3)
    assert histograms.tolist() == [[2, 1, 0], [0, 1, 2]]
    # Population 1/3 each; client 0 has 2/3, 1/3, 0: |1/3| + 0 + |1/3|.
    assert earth_movers_distance(histograms) == pytest.approx([2 / 3, 2 / 3])


HISTOGRAMS = np.array([[2, 0, 5], [0, 0, 1]] * 500, dtype=np.int32)


def test_sharing_presence_or_histogram():
    assert np.array_equal(share_labels(HISTOGRAMS, LabelSharing(), 1)[0], HISTOGRAMS)
    assert share_labels(HISTOGRAMS[:2], LabelSharing(payload="presence"), 1)[0].tolist() == [
        [1, 0, 1],
        [0, 0, 1],
    ]


def test_clients_that_refuse_share_nothing():
    shared = share_labels(HISTOGRAMS, LabelSharing(refusal_rate=0.3), 1)[0]
    silent = ~shared.any(1)
    assert silent.sum() == 300
    assert np.array_equal(shared[~silent], HISTOGRAMS[~silent])
    assert np.array_equal(shared, share_labels(HISTOGRAMS, LabelSharing(refusal_rate=0.3), 1)[0])
    assert not np.array_equal(shared, share_labels(HISTOGRAMS, LabelSharing(refusal_rate=0.3), 2)[0])


def test_randomised_response_flips_bits_at_the_rate_of_epsilon():
    shared = share_labels(HISTOGRAMS, LabelSharing(payload="presence", epsilon=2.0), 1)[0]
    lies = (shared != (HISTOGRAMS > 0)).mean()
    assert lies == pytest.approx(1 / (1 + np.e), abs=0.03)  # epsilon / 2 per bit: 1 / (1 + e^1) = 0.269


def test_laplace_noise_has_the_scale_of_epsilon():
    noise = share_labels(np.full((1000, 10), 1000, dtype=np.int32), LabelSharing(epsilon=0.5), 1)[0] - 1000
    assert abs(noise.mean()) < 0.3
    assert np.abs(noise).mean() == pytest.approx(
        2 / 0.5, rel=0.05
    )  # the mean absolute value of Laplace noise is its scale
    assert share_labels(HISTOGRAMS, LabelSharing(epsilon=0.1), 1)[0].min() == 0


def test_mnist5k_is_balanced_and_its_parts_are_disjoint():
    arrays = datasets.load(Data(name="mnist5k"))
    assert np.bincount(arrays["train_labels"]).tolist() == [400] * 10
    assert np.bincount(arrays["test_labels"]).tolist() == [100] * 10
    train = {image.tobytes() for image in arrays["train_images"]}
    assert not any(image.tobytes() in train for image in arrays["test_images"])


def test_a_smaller_pool_is_a_subset_of_a_larger_one():
    small, large = public.public_pool(LABELS, 105, 10), public.public_pool(LABELS, 1000, 10)
    assert len(small) == 105 and set(small) < set(large) and np.array_equal(small, np.sort(small))
    assert np.bincount(LABELS[small]).tolist() == [11] * 5 + [10] * 5
    assert len(public.public_pool(LABELS, 0, 10)) == 0
    with pytest.raises(UserError, match="401 training samples of class 0, but the data set has 400"):
        public.public_pool(LABELS, 4001, 10)


def test_no_client_holds_an_image_of_the_pool():
    one = loading.single(overrides=["method=genfl", "data.public_pool=1000"])
    divided = load_and_divide(one)
    pool = public.public_pool(divided["train_labels"], 1000, 10)
    assert sorted([*divided["indices"], *pool]) == list(range(4000))
    assert divided["label_histograms"].sum() == 3000


def test_images_of_the_test_set_are_excluded_from_the_pool():
    arrays = {name: array.copy() for name, array in datasets.load(Data(name="mnist5k")).items()}
    pool = public.public_pool(arrays["train_labels"], 100, 10)
    arrays["train_images"][pool[7]] = arrays["test_images"][42]
    values, labels, tested = public.public_images(
        arrays, datasets.DESCRIPTIONS["mnist5k"], Data(public_pool=100), "public_pool"
    )
    assert tested == 1 and len(values) == len(labels) == 99
    assert np.array_equal(
        (values * 255).round().byte().numpy(), np.delete(arrays["train_images"][pool], 7, axis=0)
    )
    with pytest.raises(UserError, match="data.public_pool is 0"):
        public.public_images(arrays, datasets.DESCRIPTIONS["mnist5k"], Data(), "public_pool")
    with pytest.raises(UserError, match="like MNIST's, do not match"):
        public.public_images(arrays, datasets.DESCRIPTIONS["cifar10"], Data(name="cifar10"), "uci_digits")


@pytest.mark.parametrize("name", ["mnist5k", "folder", "synthetic", "cifar10", "cifar100", "mnist", "emnist"])
def test_labels_are_the_same_without_images(name, tmp_path, monkeypatch):
    images, labels = np.zeros((60, 32, 32, 3), np.uint8), np.arange(60) % 7
    if name in datasets.DESCRIPTIONS and name != "mnist5k":
        about = dataclasses.replace(datasets.DESCRIPTIONS[name], train_samples=60)
        monkeypatch.setitem(datasets.DESCRIPTIONS, name, about)
        files, key = label_files.BATCHES.get(name, ([label_files.LABELS.get(name)], None))
        for file, part in zip(files, np.split(labels, len(files))):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            content = pickle.dumps({"data": images[: len(part)], key: part.tolist()}, 2)
            (tmp_path / file).write_bytes(content if key else bytes(8) + part.astype(np.uint8).tobytes())
        monkeypatch.setattr(datasets, "load", lambda data: pytest.fail("read the images"))
    elif name == "folder":
        for part, kind in itertools.product(("train", "test"), ("cat", "dog")):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(2 + len(part)):
                Image.fromarray(images[0]).save(tmp_path / part / kind / f"{number}.png")
        labels = datasets.load(Data(name=name, root=str(tmp_path), size=32))["train_labels"]
    else:
        labels = datasets.load(Data(name=name, samples=60))["train_labels"]
    found = datasets.load_train_labels(Data(name=name, root=str(tmp_path), size=32, samples=60))
    assert found.dtype == np.int64 and found.tolist() == labels.tolist()


def test_a_pickle_of_labels_runs_no_code(tmp_path):
    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python/train").write_bytes(pickle.dumps({"fine_labels": Code()}))
    assert label_files.read_train_labels(Data(name="cifar100", root=str(tmp_path))) is None
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(
    "GENFL_DATA" not in os.environ, reason="set GENFL_DATA to a folder with CIFAR-10 and CIFAR-100"
)
@pytest.mark.parametrize(("name", "tested"), [("cifar10", 0), ("cifar100", 1)])
def test_public_pools_of_cifar_exclude_their_test_images(name, tested):
    """CIFAR-100's training set holds copies of test images; one in the pool is excluded."""
    data = Data(name=name, root=os.environ["GENFL_DATA"], public_pool=10000)
    assert (
        public.public_images(datasets.load(data), datasets.DESCRIPTIONS[name], data, "public_pool")[2]
        == tested
    )


@pytest.mark.skipif(
    "GENFL_DATA" not in os.environ, reason="set GENFL_DATA to a folder with CIFAR-10 and CIFAR-100"
)
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_real_cifar_is_as_described(name):
    arrays = datasets.load(Data(name=name, root=os.environ["GENFL_DATA"]))
    assert label_files.read_train_labels(Data(name=name, root=os.environ["GENFL_DATA"])).tolist() == (
        arrays["train_labels"].tolist()
    )
    about = datasets.DESCRIPTIONS[name]
    images = arrays["train_images"]
    assert images.shape == (about.train_samples, *about.shape) and images.dtype == np.uint8
    assert len(set(np.bincount(arrays["train_labels"]))) == 1
    assert len(arrays["test_labels"]) == 10000
    assert images.mean((0, 2, 3)) / 255 == pytest.approx(about.mean, abs=2e-3)
    assert images.std((0, 2, 3)) / 255 == pytest.approx(about.std, abs=2e-3)
    meta = next(
        Path(os.environ["GENFL_DATA"]).glob(
            {"cifar10": "cifar-10*/batches.meta", "cifar100": "cifar-100*/meta"}[name]
        )
    )
    assert all(label.encode() in meta.read_bytes() for label in about.classes)


def test_a_folder_of_images_is_a_data_set(tmp_path, tiny, capsys):
    from PIL import Image

    for part, count in (("train", 12), ("test", 3)):
        for value, name in ((40, "dark"), (200, "light")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20 + i, 20), (value, i, 0)).save(tmp_path / part / name / f"{i:02d}.png")
    data = Data(name="folder", root=str(tmp_path), size=16)
    about, arrays = datasets.describe(data), datasets.load(data)
    assert about.classes == ("dark", "light") and about.shape == (3, 16, 16) and about.train_samples == 24
    assert (
        arrays["train_images"].shape == (24, 3, 16, 16)
        and arrays["test_labels"].tolist() == [0] * 3 + [1] * 3
    )
    assert (arrays["train_images"][:, 0].mean((1, 2)) > 100).tolist() == arrays["train_labels"].astype(
        bool
    ).tolist()
    run = [
        *tiny,
        "method=fedavg",
        "data.name=folder",
        f"data.root={tmp_path}",
        "clients=3",
        "partition.min_samples=1",
    ]
    assert main([*run, f"output={tmp_path}/results"]) == 0
    (tmp_path / "train/dark/99.png").write_text("no image")
    assert main([*run, f"output={tmp_path}/other"]) == 2
    assert "99.png is not a readable image" in capsys.readouterr().err
    with pytest.raises(UserError, match="no images in"):
        datasets.describe(Data(name="folder", root=str(tmp_path / "nowhere")))


def test_the_synthetic_data_set_can_be_learned(tiny, tmp_path):
    from genfl_mpi.results import reader

    arrays = datasets.load(Data(name="synthetic", samples=500, size=20))
    assert arrays["train_images"].shape == (500, 3, 20, 20) and len(arrays["test_labels"]) == 100
    assert np.array_equal(
        arrays["train_images"], datasets.load(Data(name="synthetic", samples=500, size=20))["train_images"]
    )
    assert (
        main(
            [
                *tiny,
                "method=fedavg",
                "data.name=synthetic",
                "data.samples=2000",
                "partition.scheme=iid",
                "rounds=3",
            ]
        )
        == 0
    )
    with reader.open_results(tmp_path / "results/fedavg_seed1.h5") as file:
        assert file["rounds/accuracy"][-1] > 0.3


@pytest.mark.parametrize(
    ("name", "folder", "prefix", "classes"),
    [("fashion_mnist", "FashionMNIST", "", 10), ("emnist", "EMNIST", "emnist-balanced-", 47)],
)
def test_data_sets_in_the_format_of_mnist_are_read(tmp_path, name, folder, prefix, classes):
    """A few images, written in the format that torchvision reads."""
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    images = np.zeros((classes, 28, 28), dtype=np.uint8)
    images[:, 3, 20] = 1 + np.arange(classes)
    for part in ("train", "test") if prefix else ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(classes, dtype=np.uint8))):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / f"{prefix}{part}-{kind}-ubyte").write_bytes(
                bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
            )
    data = Data(name=name, root=str(tmp_path))
    arrays = datasets.load(data)
    assert len(datasets.describe(data).classes) == classes and arrays["train_labels"].tolist() == list(
        range(classes)
    )
    y, x = (20, 3) if name == "emnist" else (3, 20)  # EMNIST is published with rows and columns swapped
    assert arrays["test_images"][:, 0, y, x].tolist() == list(range(1, classes + 1))


def test_without_normalisation_pixels_stay_in_the_unit_interval():
    about = datasets.describe(Data(name="cifar10", normalise=False))
    assert about.mean == (0, 0, 0) and about.std == (1, 1, 1)


def test_misbehaving_clients_hold_degraded_data():
    def divided(**bad):
        one = loading.single({"method": "fedavg", "misbehaving_clients": bad})
        return one, load_and_divide(one)

    _, clean = divided()
    for kind in ("blurred", "noisy", "mislabelled"):
        one, data = divided(share=0.3, kind=kind)
        assert data["misbehaving"].sum() == 6 and np.array_equal(data["indices"], clean["indices"])
        for client in range(20):
            images, labels = client_data(data, client, one)
            images_before, labels_before = client_data(clean, client, one)
            images_differ, labels_differ = (images != images_before).any(), labels != labels_before
            assert images_differ == (data["misbehaving"][client] and kind != "mislabelled")
            assert (
                labels_differ.all()
                if data["misbehaving"][client] and kind == "mislabelled"
                else not labels_differ.any()
            )
            again, _ = client_data(data, client, one)
            assert np.array_equal(images, again)
        assert np.array_equal(data["label_histograms"], clean["label_histograms"]) == (kind != "mislabelled")
    image = np.zeros((1, 1, 9, 9), dtype=np.uint8)
    image[0, 0, 4, 4] = 250
    assert degrade(image, "blurred", None)[0, 0, 2:7, 2:7].tolist() == [[10] * 5] * 5


def test_a_run_with_more_clients_than_samples(tiny):
    assert (
        main(
            [
                *tiny,
                "method=fedavg",
                "clients=5000",
                "partition.scheme=classes",
                "partition.replacement=true",
                "partition.samples=12",
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("scheme", "replacement"),
    [
        ("dirichlet_client", True),
        ("classes", True),
        ("iid", True),
        ("dirichlet_client", False),
        ("classes", False),
    ],
)
def test_the_block_size_does_not_change_the_partition(scheme, replacement, monkeypatch):
    settings = Partition(scheme=scheme, replacement=replacement, samples=7)

    def divided():
        pointers, indices = partition(LABELS, 50, 10, settings, seed=1)
        return pointers, indices, label_histograms(LABELS[indices], pointers, 10)

    whole = divided()
    monkeypatch.setattr("genfl_mpi.data.partition.BLOCK", 3)
    assert all(map(np.array_equal, divided(), whole))


def test_a_client_costs_four_bytes_per_sample_and_a_row_of_counts():
    clients, samples = 20_000, 50
    settings = loading.single(
        None,
        [
            "method=fedavg",
            f"clients={clients}",
            "cohort=5",
            "data.name=synthetic",
            "data.size=4",
            "data.samples=1000",
            "partition.scheme=dirichlet_client",
            "partition.replacement=true",
            f"partition.samples={samples}",
        ],
    )
    tracemalloc.start()
    data = load_and_divide(settings)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = sum(array.nbytes for array in data.values())
    assert held < clients * (5 * samples + 2 * 4 * 10 + 8 + 2) + 1e5
    assert most < 2.5 * held, "the peak must stay close to the memory of the result"


def test_a_class_without_samples_cannot_be_drawn():
    with pytest.raises(UserError, match="clients draw class 3, which has no training samples"):
        partition(np.repeat([0, 1, 2, 4], 10), 50, 5, Partition(scheme="classes", replacement=True), seed=1)


OWN = """
import numpy as np
from genfl_mpi.data.datasets import Description

def good(data, shape=(1, 8, 8), **other):
    about = Description(("a", "b"), shape, 60, (0.5,), (0.25,))
    arrays = {f"{part}_{kind}": values for part, count in (("train", 60), ("test", 20))
              for kind, values in (("images", np.zeros((count, 1, 8, 8), np.uint8)),
                                   ("labels", np.arange(count) % 2))}
    return about, lambda: {**arrays, **other}

def other_shape(data): return good(data, (3, 8, 8))
def other_labels(data): return good(data, test_labels=np.full(20, 2))
def fewer(data):
    return good(data, train_images=np.zeros((50, 1, 8, 8), np.uint8), train_labels=np.zeros(50, int))
def floats(data): return good(data, train_images=np.zeros((60, 1, 8, 8)))
def lacking(data): return good(data)[0], lambda: {}
def nothing(data): return None

def halves(labels, clients, classes, settings, rng): return np.arange(len(labels)) * clients // len(labels)
def too_many(labels, clients, classes, settings, rng): return np.arange(len(labels))
def too_few(labels, clients, classes, settings, rng): return np.zeros(3, int)
def no_numbers(labels, clients, classes, settings, rng): return labels * 0.5
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_data", raising=False)


def test_a_user_defined_data_set_is_read(own):
    data = Data(name="own_data:good")
    assert (
        datasets.describe(data).classes == ("a", "b")
        and datasets.load(data)["train_labels"].tolist() == [0, 1] * 30
    )
    assert datasets.describe(Data(name="own_data:good", normalise=False)).mean == (0.0,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other_shape", r"uint8 \(n, 3, 8, 8\)"),
        ("other_labels", "test_labels .* an integer from 0 to 1"),
        ("fewer", "50 training images, but its description says 60"),
        ("floats", "train_images .* not float64"),
        ("lacking", "train_images"),
        ("nothing", "must return a .*Description"),
        ("missing", "cannot be imported"),
    ],
)
def test_an_invalid_user_defined_data_set_is_refused(own, name, message):
    with pytest.raises(UserError, match=message):
        datasets.load(Data(name=f"own_data:{name}"))


def test_a_user_defined_partition_is_used(own):
    pointers, indices = partition(np.zeros(60, dtype=np.int64), 3, 2, Partition(scheme="own_data:halves"), 1)
    assert pointers.tolist() == [0, 20, 40, 60] and indices.tolist() == list(range(60))


@pytest.mark.parametrize("scheme", ["too_many", "too_few", "no_numbers"])
def test_an_invalid_user_defined_partition_is_refused(own, scheme):
    with pytest.raises(UserError, match="must return a client from 0 to 2, or -1, for each of 60 samples"):
        partition(np.zeros(60, dtype=np.int64), 3, 2, Partition(scheme=f"own_data:{scheme}"), 1)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "data.name=mnits",
            "data.name= must be one of mnist5k, .* or module:function of your own; did you mean mnist. "
            ".got 'mnits'",
        ),
        ("partition.scheme=iidd", "partition.scheme= must be one of dirichlet, .*got 'iidd'"),
    ],
)
def test_an_unknown_name_is_refused(key, message):
    with pytest.raises(UserError, match=message):
        loading.single(overrides=[key, "method=fedavg"])
