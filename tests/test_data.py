"""Data sets, partitions, label sharing."""

import os
from pathlib import Path

import numpy as np
import pytest

from genfl_mpi import config
from genfl_mpi.data import datasets, public
from genfl_mpi.data.labels import earth_movers_distance, label_histograms, share
from genfl_mpi.data.partition import partition
from genfl_mpi.errors import UserError
from genfl_mpi.settings import Data, LabelSharing, Partition
from genfl_mpi.simulation import load_and_divide

LABELS = np.repeat(np.arange(10), 400)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 1000.0])
@pytest.mark.parametrize("clients", [3, 20, 100])
def test_every_sample_has_one_client_and_no_client_too_few(alpha, clients):
    pointers, indices = partition(LABELS, clients, 10, Partition(alpha=alpha, min_samples=10), seed=3)
    assert sorted(indices) == list(range(len(LABELS)))
    assert pointers[0] == 0 and pointers[-1] == len(LABELS)
    assert np.diff(pointers).min() >= 10


def test_alpha_is_skew():
    def emd(alpha):
        pointers, indices = partition(LABELS, 20, 10, Partition(alpha=alpha), seed=0)
        return earth_movers_distance(label_histograms(LABELS, pointers, indices, 10)).mean()

    assert emd(0.1) > 1.0 > emd(1.0) > 0.3 > emd(1000)


def test_iid_is_even():
    pointers, indices = partition(LABELS, 20, 10, Partition(scheme="iid"), seed=0)
    assert set(np.diff(pointers)) == {200}
    assert earth_movers_distance(label_histograms(LABELS, pointers, indices, 10)).max() < 0.6


def test_more_clients_than_samples_is_an_error():
    with pytest.raises(UserError, match="use fewer clients"):
        partition(LABELS, 401, 10, Partition(min_samples=10), seed=0)


def test_histograms_and_emd_by_hand():
    # Two clients: samples 0, 1, 2 with labels 0, 0, 1 and samples 3, 4, 5 with labels 1, 2, 2.
    histograms = label_histograms(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 3, 6]), np.arange(6), 3)
    assert histograms.tolist() == [[2, 1, 0], [0, 1, 2]]
    # Population 1/3 each; client 0 has 2/3, 1/3, 0: |1/3| + 0 + |1/3|.
    assert earth_movers_distance(histograms) == pytest.approx([2 / 3, 2 / 3])


HISTOGRAMS = np.array([[2, 0, 5], [0, 0, 1]] * 500, dtype=np.int32)


def test_sharing_presence_or_histogram():
    assert np.array_equal(share(HISTOGRAMS, LabelSharing(), 1), HISTOGRAMS)
    assert share(HISTOGRAMS[:2], LabelSharing(payload="presence"), 1).tolist() == [[1, 0, 1], [0, 0, 1]]


def test_clients_that_refuse_share_nothing():
    shared = share(HISTOGRAMS, LabelSharing(refusing=0.3), 1)
    silent = ~shared.any(1)
    assert silent.sum() == 300
    assert np.array_equal(shared[~silent], HISTOGRAMS[~silent])
    assert np.array_equal(shared, share(HISTOGRAMS, LabelSharing(refusing=0.3), 1))
    assert not np.array_equal(shared, share(HISTOGRAMS, LabelSharing(refusing=0.3), 2))


def test_randomised_response_lies_as_often_as_epsilon_allows():
    shared = share(HISTOGRAMS, LabelSharing(payload="presence", epsilon=2.0), 1)
    lies = (shared != (HISTOGRAMS > 0)).mean()
    assert lies == pytest.approx(1 / (1 + np.e), abs=0.03)  # epsilon / 2 a bit: 1 / (1 + e^1) = 0.269


def test_laplace_noise_has_the_scale_of_epsilon():
    noise = share(np.full((1000, 10), 1000, dtype=np.int32), LabelSharing(epsilon=0.5), 1) - 1000
    assert abs(noise.mean()) < 0.3
    assert np.abs(noise).mean() == pytest.approx(2 / 0.5, rel=0.05)  # the mean size of Laplace noise is its scale
    assert share(HISTOGRAMS, LabelSharing(epsilon=0.1), 1).min() == 0


def test_mnist5k_is_balanced_and_its_parts_are_disjoint():
    arrays = datasets.load(Data(name="mnist5k"))
    assert np.bincount(arrays["train_labels"]).tolist() == [400] * 10
    assert np.bincount(arrays["test_labels"]).tolist() == [100] * 10
    train = {image.tobytes() for image in arrays["train_images"]}
    assert not any(image.tobytes() in train for image in arrays["test_images"])


def test_a_smaller_pool_is_part_of_a_larger_one():
    small, large = public.pool(LABELS, 105, 10), public.pool(LABELS, 1000, 10)
    assert len(small) == 105 and set(small) < set(large) and np.array_equal(small, np.sort(small))
    assert np.bincount(LABELS[small]).tolist() == [11] * 5 + [10] * 5
    assert len(public.pool(LABELS, 0, 10)) == 0
    with pytest.raises(UserError, match="401 training samples of class 0, and there are 400"):
        public.pool(LABELS, 4001, 10)


def test_no_client_holds_an_image_of_the_pool():
    one = config.single(overrides=["method=genfl", "data.public_pool=1000"])
    divided = load_and_divide(one)
    pool = public.pool(divided["train_labels"], 1000, 10)
    assert sorted([*divided["indices"], *pool]) == list(range(4000))
    assert divided["label_histograms"].sum() == 3000


def test_an_image_of_the_test_set_is_not_learned_from():
    arrays = {name: array.copy() for name, array in datasets.load(Data(name="mnist5k")).items()}
    pool = public.pool(arrays["train_labels"], 100, 10)
    arrays["train_images"][pool[7]] = arrays["test_images"][42]
    values, labels, tested = public.images(arrays, datasets.DESCRIPTIONS["mnist5k"], Data(public_pool=100), "public_pool")
    assert tested == 1 and len(values) == len(labels) == 99
    assert np.array_equal((values * 255).round().byte().numpy(), np.delete(arrays["train_images"][pool], 7, axis=0))
    with pytest.raises(UserError, match="data.public_pool is 0"):
        public.images(arrays, datasets.DESCRIPTIONS["mnist5k"], Data(), "public_pool")
    with pytest.raises(UserError, match="digits like MNIST's"):
        public.images(arrays, datasets.DESCRIPTIONS["cifar10"], Data(name="cifar10"), "uci_digits")


@pytest.mark.skipif("GENFL_DATA" not in os.environ, reason="set GENFL_DATA to a folder with CIFAR-10 and CIFAR-100")
@pytest.mark.parametrize(("name", "tested"), [("cifar10", 0), ("cifar100", 1)])
def test_the_pools_of_cifar_and_the_test_images_in_them(name, tested):
    """CIFAR-100's training set holds copies of test images: one of them is in the pool, and left out."""
    data = Data(name=name, root=os.environ["GENFL_DATA"], public_pool=10000)
    assert public.images(datasets.load(data), datasets.DESCRIPTIONS[name], data, "public_pool")[2] == tested


@pytest.mark.skipif("GENFL_DATA" not in os.environ, reason="set GENFL_DATA to a folder with CIFAR-10 and CIFAR-100")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_real_cifar(name):
    arrays = datasets.load(Data(name=name, root=os.environ["GENFL_DATA"]))
    about = datasets.DESCRIPTIONS[name]
    images = arrays["train_images"]
    assert images.shape == (about.train_samples, *about.shape) and images.dtype == np.uint8
    assert len(set(np.bincount(arrays["train_labels"]))) == 1
    assert len(arrays["test_labels"]) == 10000
    assert images.mean((0, 2, 3)) / 255 == pytest.approx(about.mean, abs=2e-3)
    assert images.std((0, 2, 3)) / 255 == pytest.approx(about.std, abs=2e-3)
    meta = next(Path(os.environ["GENFL_DATA"]).glob({"cifar10": "cifar-10*/batches.meta", "cifar100": "cifar-100*/meta"}[name]))
    assert all(label.encode() in meta.read_bytes() for label in about.classes)
