"""FedGen, DENSE and FedFTG: generators that the server trains on the clients' models."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import mpirun

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.data import datasets
from genfl_mpi.federation import teachers
from genfl_mpi.federation.algorithms import ALGORITHMS, data_free, fedgen
from genfl_mpi.federation.refinements.tools import Tools
from genfl_mpi.learning.conditional_generators import NOISE, diversity_loss
from genfl_mpi.learning.heads import head_of
from genfl_mpi.results import reader

SHORT = ["method=fedavg", "algorithm.server_steps=1", "algorithm.server_batch=8", "training.lr=0.01"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.name=fedgen", "algorithm.generated_weight=0"],
        ["algorithm.name=dense", "algorithm.server_steps=0"],
        ["algorithm.name=fedftg", "algorithm.server_steps=0"],
    ],
    ids=lambda overrides: overrides[0][15:],
)
def test_with_weight_0_it_is_fedavg_and_sends_as_little(overrides, tiny):
    runs = [Simulation(overrides=[*tiny, "method=fedavg", *more]) for more in ([], overrides)]
    for run in runs:
        list(run)
    assert torch.equal(runs[0].weights, runs[1].weights)
    assert runs[0].message_bytes == runs[1].message_bytes and not runs[1].parts.questions.known


@pytest.mark.parametrize("name", ["fedgen", "fedftg"])
def test_it_has_the_same_bits_on_any_ranks_and_when_continued(name, tiny, tmp_path):
    run = [*tiny, *SHORT, f"algorithm.name={name}"]
    done = mpirun(2, "-m", "genfl_mpi", *run, f"output={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    for rounds in (1, 2):
        assert main([*run, f"rounds={rounds}", f"output={tmp_path}/parts"]) == 0
    two, parts = (reader.digests(tmp_path / f"{where}/fedavg_seed1.h5") for where in ("two", "parts"))
    assert two == parts


@pytest.fixture
def asked(tiny):
    """Return a finished run of an algorithm, and the `Teachers` of its last round."""

    def compute(name):
        one = Simulation(overrides=[*tiny, *SHORT, f"algorithm.name={name}", "training.lr=0.1", "rounds=1"])
        list(one)
        questions, about = one.parts.questions, datasets.describe(one.config.data)
        trained = np.ones(3, dtype=bool)
        plan = one.parts.messages.broadcast.plan
        return one, teachers.Teachers(
            questions.ask, about, trained, one.data["shared_labels"][plan["client"]]
        )

    return compute


@pytest.mark.parametrize("name", ["fedgen", "dense"])
def test_teachers_answer_like_the_models(name, asked):
    """Compare logits and gradients with autograd on the same models; more inputs than fit into a question."""
    one, models = asked(name)
    shape, rng = ALGORITHMS[name].asks(one.config), torch.Generator().manual_seed(0)
    count = teachers.MADE_BLOCK + 3
    inputs = torch.randn(count, *shape, generator=rng, requires_grad=True)
    labels = torch.randint(10, (count,), generator=rng)
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 10).T
    upstream = torch.randn(count, 10, generator=rng)

    def of_each(function):
        """Sum a function of each model's logits and of its weights, and the function's gradient."""
        total = gradient = 0
        for place, kept in one.parts.worker.kept.items():
            one.model.load(kept)
            network = one.model.module.eval()
            logits = (head_of(network) if len(shape) == 1 else network)(inputs)
            value = function(logits, torch.from_numpy(weights[place])[labels].float()[:, None])
            gradient = gradient + torch.autograd.grad(value.sum(), inputs)[0]
            total = total + (logits * torch.from_numpy(weights[place])[labels].float()[:, None]).detach()
        return total, gradient

    expected, gradient = of_each(lambda logits, rows: logits * rows * upstream)
    got = models.logits(inputs, labels, weights)
    torch.testing.assert_close(got.detach(), expected, atol=1e-5, rtol=1e-4)
    found = torch.autograd.grad((got * upstream).sum(), inputs)[0]
    torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-3)
    _, gradient = of_each(
        lambda logits, rows: F.cross_entropy(logits, labels, reduction="none")[:, None] * rows / count
    )
    found = torch.autograd.grad(models.loss(inputs, labels, weights), inputs)[0]
    torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-3)


def test_fedgens_features_are_classified_as_their_labels_and_reach_the_clients(tiny):
    one = Simulation(
        overrides=[
            *tiny,
            *SHORT,
            "algorithm.name=fedgen",
            "algorithm.server_steps=60",
            "algorithm.server_batch=32",
            "algorithm.generator_lr=0.01",
            "training.lr=0.1",
            "cohort=6",
            "rounds=1",
        ]
    )
    list(one)

    def loss(weights):
        generator = fedgen.make_generator(one.config, torch.device("cpu"))
        generator.load(weights)
        labels = torch.arange(10).repeat(4)
        noise = torch.randn(40, NOISE, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            made = generator.module.train()(noise, labels)
            one.model.load(one.weights)  # the average of the clients' models
            return F.cross_entropy(head_of(one.model.module)(made), labels).item()

    initial = fedgen.make_generator(one.config, torch.device("cpu")).weights.clone()
    state = one.server.memory
    assert loss(state["trained_generator"].float()) < loss(initial) - 0.2
    sent = ALGORITHMS["fedgen"].broadcast(state, one.config)
    assert sent["generator"] is state["trained_generator"] and sent["weight"].item() == pytest.approx(9.8)
    broadcast = one.parts.messages.broadcast
    plain = Simulation(overrides=[*tiny, "method=fedavg", "cohort=6"]).message_bytes
    assert broadcast.buffer.nbytes - plain[0] == pytest.approx(4 * (len(initial) + 1), abs=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "fedftg"])
def test_the_student_agrees_more_with_the_clients_models(name, asked):
    """On images of the generator, after the round's distillation."""
    one, models = asked(name)
    generator = data_free.make_generator(one.config, torch.device("cpu"))
    rng, held = torch.Generator().manual_seed(0), models.labels
    noise = torch.randn(256, NOISE, generator=rng)
    prior = torch.from_numpy(np.ones(10) if name == "dense" else held.sum(0).astype(float))
    labels = torch.multinomial(prior, 256, replacement=True, generator=rng)
    weights = (
        np.repeat(models.share[:, None], 10, 1) if name == "dense" else held / np.maximum(1, held.sum(0))
    )
    settings = one.config.algorithm.model_copy(update={"server_steps": 6, "server_batch": 32})
    config = one.config.model_copy(update={"algorithm": settings})
    omega, memory = one.weights.double(), {}
    refined = ALGORITHMS[name].refine(memory, omega, Tools(0, one.model, one.server.images, models), config)
    generator.load(memory["generator"].float())
    with torch.no_grad():
        images = generator.module.train()(noise, labels)
        target = models.logits(images, labels, weights).softmax(1)
        divergences = []
        for candidate in (omega, refined):
            one.model.load(candidate.float())
            given = one.model.module.eval()(images).log_softmax(1)
            divergences.append(F.kl_div(given, target, reduction="batchmean").item())
    assert divergences[1] < divergences[0] and images.shape == (256, *one.about.shape)


def test_diversity_by_hand():
    noise, outputs = torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[0.0], [2.0]])
    # Mean square 5, mean distance 2; two of the four pairs are of a sample with itself.
    assert diversity_loss(noise, outputs).item() == pytest.approx(np.exp(-(2 * 5 * 2) / 4))


def test_networks_with_batchnorm_are_refused(tiny, capsys):
    run = [*tiny, "method=fedavg", "algorithm.name=dense", "model.name=resnet18"]
    assert main(run) == 2
    assert "algorithm.name=dense supports no network with BatchNorm" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1
