"""Data sets of image files and of Hugging Face, their natural clients, and arrays mapped into memory."""

import json
import sys

import numpy as np
import pytest
import scipy.io
from conftest import FAST, mpirun
from PIL import Image

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.config.sections.samples import Data
from genfl_mpi.data import datasets, descriptions
from genfl_mpi.data.clients import load_and_divide
from genfl_mpi.data.femnist import CLASSES
from genfl_mpi.util.errors import UserError

RNG = np.random.default_rng(0)


def picture(path, side=8, grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (side, side) if grey else (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def client_folders(root):
    """Three clients with 2, 4 and 6 images of two classes."""
    for number, client in enumerate(("ann", "bob", "eve"), 1):
        for sample in range(2 * number):
            picture(root / "train" / client / "ab"[sample % 2] / f"{sample}.png")
    for sample in range(4):
        picture(root / "test" / "ab"[sample % 2] / f"{sample}.png")


def femnist(root):
    for part, writers in (("train", {"f1": 3, "f2": 5}), ("test", {"f1": 2})):
        file = root / "femnist" / part / "all_data_0.json"
        file.parent.mkdir(parents=True)
        samples = {
            one: {"x": RNG.random((count, 784)).tolist(), "y": list(range(count))}
            for one, count in writers.items()
        }
        content = {"users": list(writers), "num_samples": list(writers.values()), "user_data": samples}
        file.write_text(json.dumps(content))


def cinic10(root):
    for part, count in (("train", 3), ("test", 1)):
        for sample in range(10 * count):
            picture(root / "CINIC-10" / part / descriptions.CIFAR10[sample % 10] / f"{sample}.png", 32)


def tiny_imagenet(root):
    folder = root / "tiny-imagenet-200"
    for name in ("n01", "n02"):
        for sample in range(3):
            picture(folder / "train" / name / "images" / f"{name}_{sample}.JPEG", 64, grey=sample == 0)
        picture(folder / "val" / "images" / f"val_{name}.JPEG", 64)
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tsalamander\nn03\tother\n")
    rows = [f"val_{name}.JPEG\t{name}\t0\t0\t63\t63" for name in ("n02", "n01")]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(rows))


@pytest.mark.parametrize(
    "make, classes, train, shape, groups",
    [
        (client_folders, ("a", "b"), 12, (3, 8, 8), [2, 4, 6]),
        (femnist, CLASSES, 8, (1, 28, 28), [3, 5]),
        (cinic10, descriptions.CIFAR10, 30, (3, 32, 32), None),
        (tiny_imagenet, ("goldfish", "salamander"), 6, (3, 64, 64), None),
    ],
)
def test_published_layouts_are_read_with_their_natural_clients(make, classes, train, shape, groups, tmp_path):
    make(tmp_path)
    data = Data(name=make.__name__, root=str(tmp_path), size=8)
    about, arrays = datasets.describe(data), datasets.load(data)
    assert (about.classes, about.train_samples, about.shape) == (classes, train, shape)
    assert arrays["train_images"].shape == (train, *shape) and arrays["train_images"].dtype == np.uint8
    assert np.array_equal(datasets.load_train_labels(data), arrays["train_labels"])
    found = arrays.get("train_groups")
    assert (found is None) if groups is None else np.bincount(found).tolist() == groups
    if groups is not None:
        assert np.array_equal(datasets.load_train_groups(data), found)


def test_femnist_counts_its_samples_in_any_order_and_keeps_the_pixels(tmp_path):
    femnist(tmp_path)
    file = tmp_path / "femnist" / "train" / "all_data_0.json"
    content = json.loads(file.read_text())
    reordered = {key: content[key] for key in ("user_data", "num_samples", "users")}
    (tmp_path / "other" / "femnist").mkdir(parents=True)
    (tmp_path / "femnist" / "test").rename(tmp_path / "other" / "femnist" / "test")
    (tmp_path / "other" / "femnist" / "train").mkdir()
    (tmp_path / "other" / "femnist" / "train" / "0.json").write_text(json.dumps(reordered))
    data = Data(name="femnist", root=str(tmp_path / "other"))
    assert datasets.describe(data).train_samples == 8
    pixels = np.rint(255 * np.array(content["user_data"]["f1"]["x"][0])).reshape(1, 28, 28)
    assert np.array_equal(datasets.load(data)["train_images"][0], pixels)


def test_each_client_holds_the_samples_of_one_natural_client_with_enough_of_them(tmp_path):
    client_folders(tmp_path)
    settings = {
        "method": "fedavg",
        "data": {"name": "client_folders", "root": str(tmp_path), "size": 8},
        "partition": {"scheme": "groups", "min_samples": 3},
        "clients": 2,
        "cohort": 1,
    }
    arrays = load_and_divide(single(settings))
    groups = arrays["train_groups"][arrays["indices"]]
    held = [part.tolist() for part in np.split(groups, arrays["pointers"][1:-1])]
    assert sorted(held) == [[1] * 4, [2] * 6]  # bob's and eve's
    with pytest.raises(UserError, match="has 2 natural clients of at least partition.min_samples=3"):
        load_and_divide(single({**settings, "clients": 3}))


def test_svhn_and_stl10_are_read_as_torchvision_does(tmp_path, monkeypatch):
    from torchvision import datasets as published

    monkeypatch.setattr(published.SVHN, "_check_integrity", lambda _: True)
    images = RNG.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    for part in ("train", "test"):
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": np.array([[10], [1], [2], [9]])})
    arrays = datasets.load(Data(name="svhn", root=str(tmp_path)))
    assert np.array_equal(arrays["train_images"], images.transpose(3, 2, 0, 1))
    assert arrays["train_labels"].tolist() == [0, 1, 2, 9]
    monkeypatch.setattr(published.STL10, "_check_integrity", lambda _: True)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(descriptions.STL10))
    pixels = RNG.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    for part in ("train", "test"):
        pixels.tofile(folder / f"{part}_X.bin")
        np.array([1, 10], dtype=np.uint8).tofile(folder / f"{part}_y.bin")
    arrays = datasets.load(Data(name="stl10", root=str(tmp_path)))
    assert np.array_equal(arrays["test_images"], pixels.transpose(0, 1, 3, 2))
    assert arrays["test_labels"].tolist() == [0, 9]


@pytest.mark.parametrize("name", ["svhn", "stl10", "cinic10", "tiny_imagenet", "femnist", "client_folders"])
def test_a_missing_data_set_is_one_line(name, tmp_path, capsys):
    assert main(["method=fedavg", f"data.name={name}", f"data.root={tmp_path}", f"output={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "set data.root to" in error and str(tmp_path) in error


@pytest.fixture
def hub(tmp_path):
    """A data set in the hub's own format, Parquet files in a folder, with three writers."""
    found = pytest.importorskip("datasets")
    features = found.Features(
        {
            "picture": found.Image(),
            "character": found.ClassLabel(names=["x", "y"]),
            "writer": found.Value("string"),
        }
    )
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    pixels = {}
    for split, count in (("train", 30), ("validation", 10)):
        pixels[split] = RNG.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        rows = {
            "picture": [Image.fromarray(one) for one in pixels[split]],
            "character": [sample % 2 for sample in range(count)],
            "writer": [f"w{sample % 3}" for sample in range(count)],
        }
        part = found.Dataset.from_dict(rows, features=features)
        part.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder, pixels


def hub_settings(folder, **changed):
    columns = {"image": "picture", "label": "character", "client": "writer"}
    given = {"splits": ["train", "validation"], "size": 8, "columns": columns, **changed}
    return {"name": "huggingface", "root": str(folder), **given}


def test_a_data_set_of_the_hub_is_read_by_its_columns(hub):
    folder, pixels = hub
    data = Data(**hub_settings(folder))
    about, arrays = datasets.describe(data), datasets.load(data)
    assert (about.classes, about.shape, about.train_samples) == (("x", "y"), (1, 8, 8), 30)
    assert np.array_equal(arrays["train_images"][:, 0], pixels["train"])
    assert np.array_equal(arrays["test_images"][:, 0], pixels["validation"])
    assert arrays["train_groups"].tolist() == [0, 1, 2] * 10
    same = datasets.load(Data(**hub_settings(folder, splits=["train", "train"])))
    assert np.array_equal(same["test_images"][:, 0], pixels["train"][9::10])
    assert len(same["train_labels"]) == 27


def test_a_data_set_saved_to_disk_is_read(hub, tmp_path):
    import datasets as library

    folder, pixels = hub
    library.load_dataset(str(folder), cache_dir=str(tmp_path / "cache")).save_to_disk(tmp_path / "saved")
    assert np.array_equal(
        datasets.load(Data(**hub_settings(tmp_path / "saved")))["train_images"][:, 0], pixels["train"]
    )


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"columns": {"image": "pictures"}},
            "data.columns.image=pictures: .* has no such column; did you mean picture",
        ),
        (
            {"columns": {"image": "picture"}},
            "data.columns.label=label: .*; it has picture, character, writer",
        ),
        ({"splits": ["train", "test"]}, "has no split test; it has train, validation"),
    ],
)
def test_a_column_or_a_split_that_is_not_there_is_one_line(hub, changed, message):
    with pytest.raises(UserError, match=message) as error:
        datasets.describe(Data(**hub_settings(hub[0], **changed)))
    assert "\n" not in str(error.value)


def test_a_package_that_is_not_installed_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets: pip install 'genfl_mpi\[datasets\]'"):
        datasets.describe(Data(name="huggingface", root=str(tmp_path)))


def test_a_run_on_a_data_set_of_the_hub_with_its_writers(hub):
    settings = {"method": "fedavg", "rounds": 1, "clients": 3, "cohort": 3, "partition": {"scheme": "groups"}}
    [record] = Simulation({**settings, "data": hub_settings(hub[0])}, training={"epochs": 1})
    assert record.round == 1


def test_arrays_are_made_once_mapped_and_give_the_same_run(tmp_path, capsys):
    client_folders(tmp_path)
    run = [*FAST, "rounds=1", "data.name=client_folders", f"data.root={tmp_path}", "partition.min_samples=1"]
    run = [one for one in run if one not in ("data.name=synthetic", "data.samples=200", "clients=6")] + [
        "clients=3"
    ]
    arrays = f"data.arrays={tmp_path}/arrays"
    assert main([*run, f"output={tmp_path}/memory"]) == 0
    assert main(["prefetch", *run, arrays]) == 0
    (tmp_path / "train" / "ann" / "a" / "0.png").write_bytes(b"")  # is not read again
    assert mpirun(2, "-m", "genfl_mpi", *run, arrays, f"output={tmp_path}/mapped").returncode == 0
    files = [next((tmp_path / name).glob("*.h5")) for name in ("memory", "mapped")]
    capsys.readouterr()
    assert main(["digest", *map(str, files)]) == 0
    digests = [line for line in capsys.readouterr().out.splitlines() if ".h5" not in line]
    assert digests and digests[: len(digests) // 2] == digests[len(digests) // 2 :]


def test_mapped_images_are_not_copied_and_other_data_are_refused(tmp_path):
    data = Data(name="synthetic", samples=100, size=8, arrays=str(tmp_path / "arrays"))
    made, images = datasets.load(data), datasets.load(data)["train_images"]
    in_memory = datasets.load(data.model_copy(update={"arrays": None}))
    assert all(np.array_equal(made[name], in_memory[name]) for name in in_memory)
    assert isinstance(images.base, np.memmap) and not images.flags.writeable
    with pytest.raises(UserError, match="was made with data.size=8, not 9; set another folder, or remove"):
        datasets.load(data.model_copy(update={"size": 9}))
    (tmp_path / "arrays" / "about.json").write_text("{")
    with pytest.raises(UserError, match="is damaged; remove the folder, and run `prefetch`"):
        datasets.load(data)


@pytest.mark.slow
def test_memory_stays_flat_with_100000_images_of_64x64(tmp_path):
    """1.2 GB of decoded images; a run holds less than a third of that in memory of its own."""
    script = tmp_path / "flat.py"
    script.write_text(
        "import re, sys\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from genfl_mpi import Simulation\n"
        "from genfl_mpi.data import mapped\n"
        "from genfl_mpi.config.sections.samples import Data\n"
        "from genfl_mpi.data.datasets import arrays_key\n"
        "def anonymous():\n"
        "    return int(re.search(r'RssAnon:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) / 1e3\n"
        "folder, n = Path(sys.argv[1]), 100_000\n"
        "def write(scratch):\n"
        "    for part, count in (('train', n), ('test', 100)):\n"
        "        mapped.allocate(scratch, f'{part}_images', (count, 3, 64, 64))[:] = 7\n"
        "        np.save(scratch / f'{part}_labels.npy', np.arange(count) % 10)\n"
        "data = {'name': 'synthetic', 'size': 64, 'samples': n, 'arrays': str(folder)}\n"
        "mapped.make(folder, arrays_key(Data(**data)), write)\n"
        "before = anonymous()\n"
        "run = Simulation(method='fedavg', rounds=1, clients=1000, cohort=2, data=data, "
        "training={'epochs': 1})\n"
        "list(run)\n"
        "print('MB:', anonymous() - before)\n"
    )
    done = mpirun(1, script, tmp_path / "arrays")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.rpartition("MB:")[2]) < 400
