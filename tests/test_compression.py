"""Compressed uploads: unbiased quantization, the largest entries with error feedback, and their price."""

import os
import signal

import numpy as np
import pytest
import torch
from conftest import Job, mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis import pricing
from genfl_mpi.cli import main
from genfl_mpi.config.settings import Config
from genfl_mpi.edge.placements import draw_cohorts, price_run
from genfl_mpi.edge.rounds import Work
from genfl_mpi.federation import transforms
from genfl_mpi.federation.transforms.chain import Chain
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

TOP_K = ["transforms=[top_k]", "compression.share=0.1"]


def sent(name, trained, omega, client=0, own=None, **compression):
    config = Config(transforms=[name], compression=compression)
    chain = Chain(transforms.find(config), config, len(trained))
    return chain.apply(trained, omega, 0, client, own)


def test_qsgd_sends_levels_of_each_buckets_largest_entry():
    trained = torch.cat([torch.linspace(-1, 1, 512), torch.linspace(-0.01, 0.01, 88), torch.zeros(512)])
    update = sent("qsgd", trained, torch.zeros(1112), bits=3)
    for part, scale in ((slice(512), 1.0), (slice(512, 600), 0.01)):
        levels = update[part].double() / scale * 3
        assert torch.allclose(levels, levels.round(), atol=1e-5) and levels.abs().max() == pytest.approx(3)
        assert (update[part] - trained[part]).abs().max() <= scale / 3 + 1e-6
    assert not update[600:].any(), "zeros stay zeros"


def test_qsgd_has_the_mean_of_the_update():
    rng, clients = np.random.default_rng(1), 2000
    omega, trained = torch.from_numpy(rng.standard_normal((2, 700), dtype="float32"))
    mean = sum(sent("qsgd", trained, omega, n, bits=2).double() for n in range(clients)) / clients
    scale = (trained - omega)[:512].abs().max()
    deviation = 5 * scale / 2 / clients**0.5  # a Bernoulli step of `scale` has at most half of it
    assert (mean - trained).abs().max() < deviation


def test_top_k_keeps_the_rest_for_the_next_upload():
    own, omega = {"top_k.residual": torch.zeros(4)}, torch.tensor([1.0, 1.0, 1.0, 1.0])
    first = sent("top_k", torch.tensor([1.5, 0.75, 3.0, 1.0]), omega, own=own, share=0.25)
    assert first.tolist() == [1, 1, 3, 1] and own["top_k.residual"].tolist() == [0.5, -0.25, 0, 0]
    second = sent("top_k", torch.tensor([1.5, 1.0, 1.75, 1.0]), omega, own=own, share=0.25)
    assert second.tolist() == [2, 1, 1, 1] and own["top_k.residual"].tolist() == [0, -0.25, 0.75, 0]
    ties = sent("top_k", torch.ones(4), torch.zeros(4), own={"top_k.residual": torch.zeros(4)}, share=0.5)
    assert ties.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("more", [[], ["training.clients_per_batch=2"]], ids=["one", "batch"])
def test_error_feedback_loses_nothing(more, fast, tmp_path):
    """A client that trains again sends what it kept: the residual is part of the client's own arrays."""
    run = [*fast, *TOP_K, *more, "rounds=2", "clients=3", "cohort=3"]
    simulation = Simulation(overrides=run, folder=tmp_path / "states")
    parameters = simulation.model.parameters
    for record in simulation:
        for client in range(3):
            location = simulation.server.locations[client]
            residual = simulation.client_states.read(client, record.round, location)["top_k.residual"]
            assert (residual == 0).sum() >= round(0.1 * parameters) and np.abs(residual).max() > 0


def test_the_upload_is_counted_in_bytes():
    parameters, size = 10_000, 10_100
    for name, compression, expected in (
        ("clip", {}, 4 * size),
        ("qsgd", {"bits": 4}, 5000 + 4 * 20 + 400),
        ("top_k", {"share": 0.01}, 4 * 100 + 4 * 100 + 400),
        ("top_k", {"share": 0.1}, 4 * 1000 + 1250 + 400),  # places as a bitmap
    ):
        config = Config(transforms=[name], compression=compression)
        assert transforms.upload_bytes(config, size, parameters) == expected
    assert Work(weights_bytes=8.0).sent_bytes == 8 and Work(weights_bytes=8.0, upload_bytes=1).sent_bytes == 1
    with pytest.raises(UserError, match="put top_k last"):
        transforms.find(Config(transforms=["top_k", "clip"]))


def test_a_world_prices_the_smaller_upload(fast, tmp_path):
    bills = {}
    for name, more in (("plain", []), ("quantized", ["transforms=[qsgd]", "compression.bits=8"])):
        assert main([*fast, "rounds=1", *more, f"output={tmp_path}/{name}"]) == 0
        run = pricing.read(tmp_path / name / "fedavg_seed1.h5")
        [world] = pricing.worlds_for([run], [])
        bills[name] = price_run(run.trace, world["default"], draw_cohorts(run.trace, world["default"]))
    plain, quantized = (bills[name] for name in ("plain", "quantized"))
    assert quantized.bytes["up"] / plain.bytes["up"] == pytest.approx(0.25, rel=0.05)
    assert quantized.bytes["down"] == plain.bytes["down"] and quantized.seconds < plain.seconds


@pytest.mark.parametrize("compress", [TOP_K, ["transforms=[qsgd]"]], ids=["top_k", "qsgd"])
def test_compressed_runs_do_not_depend_on_ranks_or_kills(compress, fast, tmp_path):
    run = [*fast, *compress, "rounds=6"]
    for ranks in (1, 2):
        done = mpirun(ranks, "-m", "genfl_mpi", *run, f"output={tmp_path}/{ranks}")
        assert done.returncode == 0, done.stderr
    results = tmp_path / "killed/fedavg_seed1.h5"
    job = Job(2, [*run, f"output={tmp_path}/killed"], results, tmp_path / "log")
    job.after_round(2)
    os.kill(job.rank(0)["pid"], signal.SIGKILL)
    assert job.process.wait() != 0
    assert main([*run, f"output={tmp_path}/killed"]) == 0
    digests = [reader.digests(tmp_path / name / "fedavg_seed1.h5") for name in ("1", "2", "killed")]
    assert digests[0][2] and digests[0] == digests[1] == digests[2]


def test_a_run_can_be_forked_into_error_feedback(fast, tmp_path):
    assert main([*fast, "rounds=1", "checkpoint.keep=1"]) == 0
    fork = ["fork", str(tmp_path / "results/fedavg_seed1.h5"), "--at", "1", "rounds=2", *TOP_K]
    assert main([*fork, f"output={tmp_path}/fork"]) == 0
