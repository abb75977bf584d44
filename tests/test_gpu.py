"""What runs on GPUs, emulated on a CPU, and predictions of its memory; few tests need a GPU."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAST, mpirun
from torch import nn

from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.config.sections.images import Generation
from genfl_mpi.config.sections.local_training import Model, Training
from genfl_mpi.config.sections.operation import Runtime
from genfl_mpi.data import datasets
from genfl_mpi.data.clients import client_data, load_and_divide
from genfl_mpi.federation.messages import Broadcast, Reduction
from genfl_mpi.federation.resident import Resident, fits
from genfl_mpi.federation.simulation import Simulation, resolve
from genfl_mpi.generation import pipeline
from genfl_mpi.generation.generator import Generator
from genfl_mpi.learning import device_sum, models
from genfl_mpi.learning.device_sum import DeviceSum
from genfl_mpi.learning.evaluation import chunks, evaluate
from genfl_mpi.learning.memory import activation_bytes, weight_bytes
from genfl_mpi.learning.weights import LIMIT, ExactSum, FlatModel
from genfl_mpi.mpi import collectives, devices
from genfl_mpi.preparation import gpu_memory
from genfl_mpi.util.errors import UserError

CPU = torch.device("cpu")


def test_the_device_sum_has_the_bits_of_the_exact_sum(monkeypatch):
    monkeypatch.setattr(device_sum, "BLOCK", 999)
    units, there = np.zeros(5000, dtype=np.int64), torch.zeros(5000, dtype=torch.int64)
    random = torch.Generator().manual_seed(0)
    for rho in np.random.default_rng(0).dirichlet(np.ones(20)):
        weights, since = torch.randn(5000, generator=random) * 100, torch.randn(4900, generator=random)
        largest, distance = ExactSum(units).add(rho, weights, since)
        found = DeviceSum(there).add(rho, weights, since)
        assert found == (largest, pytest.approx(distance, rel=1e-12))
    assert np.array_equal(there.numpy(), units) and units.any()
    halves = torch.tensor([0.5, 1.5, -0.5, -2.5]) * 2.0**-40  # rounded to the even neighbour on both
    units, there = np.zeros(4, dtype=np.int64), torch.zeros(4, dtype=torch.int64)
    ExactSum(units).add(1.0, halves)
    DeviceSum(there).add(1.0, halves)
    assert units.tolist() == there.tolist() == [0, 2, 0, -2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), LIMIT, -LIMIT])
def test_the_device_sum_refuses_weights_that_it_cannot_hold(bad):
    weights, there = torch.ones(50), torch.zeros(50, dtype=torch.int64)
    weights[7] = bad
    with pytest.raises(ArithmeticError, match="not finite or too large"):
        DeviceSum(there).add(0.1, weights)
    assert not there.any()


# Emulates a run on a GPU in CPU memory: resident message buffers and training images.
ON_DEVICE = """
import sys
from genfl_mpi.federation import resident
from genfl_mpi.cli import main
import torch
make = resident.Resident.__init__
def moved(self, comm, device, broadcast, reduction, declared, data):
    make(self, comm, device, broadcast, reduction, declared, data)
    self._move({name: 40 for name in reduction.sums}, sys.argv[1] == "aware")
    self.omega = self.arrays.pop("model")
    self.images = torch.from_numpy(data["train_images"].copy())
    self.test_images = torch.from_numpy(data["test_images"].copy())
resident.Resident.__init__ = moved
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("ranks", "how", "more"),
    [
        (2, "aware", ["algorithm.name=scaffold"]),
        (2, "staged", ["training.clients_per_batch=2", "method=fedavg"]),
        (
            2,
            "staged",
            [
                "rho.policy=shapley",
                "validation.source=clients",
                "data.public_pool=20",
                "data.shared=10",
                "misbehaving_clients.share=0.5",
            ],
        ),
    ],
)
def test_a_run_with_sum_and_data_on_a_device_gives_the_same_weights(ranks, how, more, tmp_path):
    (tmp_path / "device.py").write_text(ON_DEVICE)
    overrides = [*FAST, "rounds=2", *more]
    done = mpirun(ranks, tmp_path / "device.py", how, *overrides, f"output={tmp_path}/device")
    assert done.returncode == 0, done.stderr
    assert main([*overrides, f"output={tmp_path}/plain"]) == 0
    from genfl_mpi.results import reader

    weights = [reader.digests(tmp_path / f"{folder}/fedavg_seed1.h5")[0] for folder in ("device", "plain")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["data.public_pool=20", "data.shared=10"],
        ["misbehaving_clients.share=1", "misbehaving_clients.kind=blurred"],
        ["misbehaving_clients.share=1", "misbehaving_clients.kind=mislabelled"],
    ],
)
def test_resident_images_give_the_same_client_data(more):
    config = single(None, [*FAST, *more])
    arrays, about = load_and_divide(config), datasets.describe(config.data)
    sent, held = (
        Resident(collectives.single(), CPU, Broadcast(5, 3, {}), Reduction(5, 3, 1, {}), {}, arrays)
        for _ in range(2)
    )
    held.images = torch.from_numpy(arrays["train_images"])
    for client in range(config.clients):
        for one, other in zip(
            sent.client_data(arrays, client, config, about), held.client_data(arrays, client, config, about)
        ):
            assert torch.equal(one, other) and len(one) == len(client_data(arrays, client, config)[1])


def test_images_are_resident_if_they_fit():
    assert fits(150e6, 16e9, 4) and fits(1e9, 16e9, 4) and not fits(1.1e9, 16e9, 4) and not fits(5e9, 16e9, 1)


def test_the_memory_of_a_message_is_zeroed():
    from genfl_mpi.mpi import staging

    assert staging.zeros(7, np.int64, CPU).tolist() == [0] * 7


def test_bytes_of_activations_match_hand_computed_values():
    """Two dense layers keep: images, outputs of ReLU, log-softmax of the logits, labels and their number."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.ReLU(inplace=True), nn.Linear(20, 10))
    assert activation_bytes(module, (3, 4, 4), 8) == pytest.approx(4 * 8 * (48 + 20 + 10) + 8 * 8, abs=8)
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    assert activation_bytes(frozen, (3, 4, 4), 16) == pytest.approx(
        2 * activation_bytes(frozen, (3, 4, 4), 8), abs=16
    )
    in_half = activation_bytes(module, (3, 4, 4), 8, "bfloat16")
    assert in_half == pytest.approx(
        2 * 8 * (48 + 20) + 4 * 8 * 10 + 8 * 8 + 2 * (48 * 20 + 20 + 20 * 10 + 10), abs=8
    )


def test_bytes_of_weights_match_hand_computed_values():
    plain = weight_bytes(100, 90, Training(), 0)
    assert plain == {
        "weights": 800,
        "algorithm's arrays": 0,
        "gradients": 360,
        "optimizer": 0,
        "exact sum": 800,
    }
    assert weight_bytes(100, 90, Training(), 1, 90, 90) == {
        "weights": 800,
        "algorithm's arrays": 360,
        "gradients": 360,
        "optimizer": 360,
        "exact sum": 1520,
    }, "SCAFFOLD's"
    assert weight_bytes(100, 90, Training(momentum=0.9), 1, clients_per_batch=5) == {
        "weights": 7 * 400,
        "algorithm's arrays": 0,
        "gradients": 5 * 360,
        "optimizer": 6 * 360,
        "exact sum": 800,
    }


def test_a_node_adds_up_the_ranks_of_each_gpu():
    assert gpu_memory.node_bytes(2, 7, 1, 2) == [7, 0]
    assert gpu_memory.node_bytes(2, 7, 4, 1) == [7 + 3 * 2]
    assert gpu_memory.node_bytes(2, 7, 7, 4) == [7, 4, 4, 4], "rank 0 has a GPU to itself"
    assert gpu_memory.node_bytes(2, 7, 7, 4, 3) == [7, 7, 7, 7], "one rank of each GPU generates"
    assert devices.assign_gpus([]) == []


def test_the_memory_of_a_rank_and_of_the_server():
    config = single(
        None, ["method=genfl", "training.batch_size=16", "augmented.momentum=0.9", "generation.cap=20"]
    )
    arrays = load_and_divide(config)
    rank, server = (gpu_memory.rank_bytes(config, arrays, serves) for serves in (False, True))
    assert "generator's weights" not in rank and server["generator's weights"] > 100_000
    assert (
        server["generated images"] == 20 * 10 * 784 * 5
        and server["optimizer"] == 4 * 105866
        and not rank["optimizer"]
    )
    largest = np.diff(arrays["pointers"]).max()
    assert (
        rank["a client's images"] == largest * 784 * 5
        and rank["data set's images"] == arrays["train_images"].nbytes + arrays["test_images"].nbytes
    )
    assert rank["CUDA graphs"] == rank["activations"] + 4 * 105866 < server["CUDA graphs"]
    together = gpu_memory.rank_bytes(
        single(None, ["method=genfl", "training.batch_size=16", "training.clients_per_batch=3"]), arrays
    )
    assert (
        together["activations"] == 3 * rank["activations"]
        and together["a client's images"] == 3 * rank["a client's images"]
        and not together["CUDA graphs"]
    )


def test_images_at_clients_count_as_gpu_memory():
    arrays = load_and_divide(single(None, ["method=filled"]))
    held, pixels = arrays["label_histograms"], 784
    largest, gap = held.sum(1).max(), (held.max(1, keepdims=True) - held).sum(1).max()
    # Own and other images of a client, as bytes and normalised, in one array and in separate ones before.
    for more, beside in (("method=sent", 10 * 60), ("method=filled", gap)):
        found = gpu_memory.rank_bytes(
            single(None, [more, "generation.cap=60000" if beside is gap else "generation.cap=60"]), arrays
        )
        assert found["a client's images"] == (largest + beside) * pixels * (5 + 4)
    priced = gpu_memory.rank_bytes(
        single(None, ["method=filled", "generation.cap=60000", "incentive.price=1", "world={}"]), arrays
    )
    assert priced["a client's images"] == found["a client's images"], (
        "at this price a client may fill all gaps"
    )


def test_the_pipeline_is_loaded_on_the_ranks_gpu(monkeypatch):
    read = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(pipeline, "read", lambda *arguments: read.append(arguments))
    monkeypatch.setattr(pipeline, "digest", lambda path: "as before")
    settings = Generation(device="cuda", save_memory=["model_cpu_offload"])
    pipeline.load(Path("folder"), None, settings, ("as before", None))
    assert torch.device("cuda", 1) in read[0]


def test_tf32_is_part_of_an_images_key_on_gpus_alone(tiny):
    def key(*more):
        config = resolve(single(None, [*tiny, *more]), collectives.single())
        return Generator(config, (1, 28, 28)).bank.settings

    assert key("generation.device=cuda") != key("generation.device=cuda", "runtime.tf32=true")
    assert key() == key("runtime.tf32=true")


@pytest.fixture
def flags():
    """Restore torch's global flags after the test."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [one.allow_tf32 for one in backends], torch.backends.cudnn.benchmark, torch.get_num_threads()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    for one, value in zip(backends, before[0]):
        one.allow_tf32 = value
    torch.backends.cudnn.benchmark = before[1]
    torch.set_num_threads(before[2])


@pytest.mark.parametrize(("tf32", "deterministic"), [(True, True), (False, False)])
def test_one_place_sets_all_flags(tf32, deterministic, flags, monkeypatch):
    place = devices.Place(0, "node", frozenset({0}), gpus=("0", "1"), usable=2)
    monkeypatch.setattr(devices, "neighbours", lambda comm: ([place], 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    runtime = Runtime(threads=1, device="cuda", tf32=tf32, deterministic=deterministic)
    assert devices.set_up(collectives.single(), runtime) == torch.device("cuda", 0)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert torch.is_deterministic_algorithms_warn_only_enabled() != deterministic
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32


class Putting(nn.Module):
    """Overwrite values by an operation that has no deterministic implementation on any device."""

    def forward(self, images):
        return images.flatten(1).clone().put_(torch.tensor([0]), torch.zeros(1))


def test_a_layer_without_a_deterministic_implementation_is_named(flags):
    torch.use_deterministic_algorithms(True)
    models.check_deterministic(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), (1, 8, 8), CPU)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), Putting()))
    with pytest.raises(UserError, match=r"layer 1\.1 \(Putting\) has no deterministic .* on cpu"):
        models.check_deterministic(module, (1, 8, 8), CPU)
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "more", [[], ["algorithm.name=scaffold"], ["rho.policy=shapley", "validation.source=clients"]]
)
def test_close_releases_models_and_buffers_without_the_garbage_collector(more, fast):
    simulation = Simulation(overrides=[*fast, "rounds=1", *more])
    list(simulation)
    kept = {
        "model": simulation.model,
        "steps": simulation.model.cached_steps[0][1],
        "server": simulation.server,
        "worker": simulation.parts.worker,
        "resident": simulation.parts.messages.resident,
    }
    alive = {name: weakref.ref(one) for name, one in kept.items()}
    gc.collect()
    gc.disable()
    try:
        kept.clear()
        simulation.close()
        del simulation
        assert [name for name, one in alive.items() if one() is not None] == []
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_evaluation_does_not_wait_for_the_gpu():
    """The only synchronizations are those that read the totals."""
    device = torch.device("cuda", 0)
    model = FlatModel(models.build(Model(), 10, (1, 28, 28), 0), device)
    images, labels = np.zeros((50, 1, 28, 28), np.uint8), np.zeros(50, np.int64)
    about = datasets.describe(single(None, FAST).data)
    evaluate(model, chunks(images, labels, 10, about, device), 10, 5)  # libraries set themselves up
    pieces = chunks(images, labels, 10, about, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for pixels, _ in pieces:
            model.module(pixels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_plan_shows_gpu_memory_if_there_are_gpus(fast, capsys):
    assert main(["plan", *fast, "-n", "3", "--gpus", "2"]) == 0
    said = capsys.readouterr().out
    assert "2 GPUs" in said and "exact sum" in said and max(map(len, said.splitlines())) <= 80
    assert main(["plan", *fast, "-n", "3"]) == 0
    assert "GPU" not in capsys.readouterr().out
    assert main(["plan", *fast, "-n", "3", "--gpus", "0"]) == 2
