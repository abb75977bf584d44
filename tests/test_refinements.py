"""What the server does with its images after Eq. (1): fine-tuning and distillation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import mpirun

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.federation import refinements, teachers
from genfl_mpi.federation.refinements.distillation import draw_batches
from genfl_mpi.learning.training import normalise, settings_at_round, train
from genfl_mpi.results import reader
from genfl_mpi.util import streams

DISTILLED = ["method=distilled", "distillation.batches=20", "distillation.batch_size=8"]


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """Return a function that computes a run in which a refinement calls `watch(omega, tools, config)`."""

    def start(name, watch, *overrides):
        built_in = refinements.REFINEMENTS[name]

        def watched(omega, tools, config):
            return watch(built_in, omega, tools, config)

        monkeypatch.setitem(refinements.REFINEMENTS, name, watched)
        one = Simulation(overrides=[*tiny, *overrides], folder=tmp_path / "states")
        return one, list(one)

    return start


def test_targets_are_the_mean_logits_and_the_student_approaches_them(run):
    """Three clients of unequal size; each counts the same, as in FedDF."""
    divergences = []

    def watch(distil, omega, tools, config):
        pixels = tools.images.training_images()[0]
        model, about = tools.model, tools.teachers.about
        images = normalise(torch.from_numpy(pixels), about.mean, about.std, torch.device("cpu"))

        def logits(weights):
            model.load(weights.float())
            with torch.no_grad():
                return model.module.eval()(images).double()

        asked = tools.teachers.mean_logits(pixels)
        kept = list(one.parts.worker.kept.values())
        assert len(kept) == tools.teachers.count == 3
        torch.testing.assert_close(asked, torch.stack([logits(weights) for weights in kept]).mean(0))
        after = distil(omega, tools, config)
        target = asked.softmax(1)
        divergences.append(
            [
                F.kl_div(logits(weights).log_softmax(1), target, reduction="batchmean").item()
                for weights in (omega, after)
            ]
        )
        return after

    from genfl_mpi.federation import simulation

    built = simulation.Simulation._assemble
    one = None

    def remember(self, *given):
        nonlocal one
        one = self
        return built(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation.Simulation, "_assemble", remember)
        run("distil", watch, *DISTILLED, "distillation.batches=200")
    assert len(divergences) == 2 and all(after < 0.5 * before for before, after in divergences)


def test_distillation_has_the_same_bits_on_any_ranks_and_when_continued(tiny, tmp_path):
    digests = set()
    for ranks in (1, 2, 3):
        done = mpirun(ranks, "-m", "genfl_mpi", *tiny, *DISTILLED, f"output={tmp_path}/{ranks}")
        assert done.returncode == 0, done.stderr
        digests.add(reader.digests(tmp_path / f"{ranks}/distilled_seed1.h5"))
    for rounds in (1, 2):
        assert main([*tiny, *DISTILLED, f"rounds={rounds}", f"output={tmp_path}/parts"]) == 0
    digests.add(reader.digests(tmp_path / "parts/distilled_seed1.h5"))
    assert len(digests) == 1


def test_fine_tuning_is_training_on_the_images_from_the_average(run):
    def watch(fine_tune, omega, tools, config):
        after = fine_tune(omega, tools, config)
        settings = settings_at_round(config.augmented, tools.round)
        rng = streams.generator(config.seed, "fine tuning", tools.round)
        train(tools.model, omega.float(), *tools.images.normalised(), settings, rng)
        assert torch.equal(after.float(), tools.model.weights) and not torch.equal(after, omega)
        return after

    one, records = run("fine_tune", watch, "method=finetuned")
    assert records[-1].columns["kappa2"] == 0 and records[-1].columns["images_used"] == 20
    assert records[-1].columns["refine_seconds"] > 0


def test_refinements_follow_eq_1_in_their_order(run):
    """With mix, the first refinement gets the mixture of both models."""

    def watch(fine_tune, omega, tools, config):
        mixed.append(omega.clone())
        return omega

    mixed = []
    one, records = run("fine_tune", watch, "composition.use=[mix,fine_tune]", "rounds=1")
    assert records[0].columns["kappa2"] == 0.2 and torch.equal(mixed[0].float(), one.weights)


def test_without_images_nothing_changes(tiny, tmp_path):
    """A filter that no image passes leaves FedAvg."""
    one = Simulation(
        overrides=[*tiny, *DISTILLED, "generation.per_round=1", "generation.plan=test_refinements:none"]
    )
    other = Simulation(overrides=[*tiny, "method=fedavg"])
    list(one), list(other)
    assert torch.equal(one.weights, other.weights)


def none(state):
    return np.zeros_like(state.generated)


def test_the_pool_and_noise_can_replace_generated_images(tiny):
    for more in (
        ["composition.source=pool", "data.public_pool=100"],
        ["generation.checkpoint=genfl_mpi.generation.noise:noise"],
    ):
        one = Simulation(overrides=[*tiny, *DISTILLED, *more, "rounds=1"])
        list(one)
        images, labels = one.server.images.training_images()
        assert set(labels) == set(range(10))
    assert len(images) == 10 and 110 < images.mean() < 145 and len(np.unique(images[0] // 64)) == 4


def test_batches_use_every_image_equally_often():
    from genfl_mpi.config.sections.images import Distillation

    order = draw_batches(10, Distillation(batches=5, batch_size=4), np.random.default_rng(0))
    assert order.shape == (5, 4) and (np.bincount(order.ravel()) == 2).all()
    assert draw_batches(3, Distillation(batches=2, batch_size=128), np.random.default_rng(0)).shape == (2, 3)


def test_bytes_of_a_question_do_not_depend_on_the_clients(tiny):
    from genfl_mpi.data import datasets

    one = Simulation(overrides=[*tiny, "method=fedavg"])
    about = datasets.describe(one.config.data)
    few, many = (teachers.image_message(about, cohort).itemsize for cohort in (1, 101))
    assert many - few == 800 and few == 8 + 8 + teachers.BLOCK * np.prod(about.shape)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["composition.use=[distill]"], "did you mean distil?"),
        (["composition.use=[fine_tune,mix]"], "name it once, and first"),
        (["composition.use=[]"], "composition.use"),
        (["method=aigc", "composition.use=[mix,distil]"], "remove distil"),
    ],
)
def test_unsuitable_uses_are_refused_in_one_line(tiny, overrides, said, capsys):
    assert main([*tiny, *overrides]) == 2
    assert said in (line := capsys.readouterr().err) and line.count("\n") == 1


def test_the_servers_refinement_is_priced(tiny, tmp_path):
    """Distillation costs the teachers' and the student's passes, after the clients; mixing nothing there."""
    from genfl_mpi.federation.workload import read_trace

    assert main([*tiny, *DISTILLED, "rounds=1"]) == 0
    with reader.open_results(tmp_path / "results/distilled_seed1.h5") as file:
        config = Simulation(overrides=[*tiny, *DISTILLED]).config
        trace, _ = read_trace(file, config)
        mixing, _ = read_trace(file, Simulation(overrides=tiny).config)
    passes = 3 * 10 + 3 * 20 * 8  # three models on ten images; 20 steps of 8
    assert trace.refine_flops.tolist() == [trace.sample_flops / 3 * passes]
    assert trace.augmented_epochs == 0 and mixing.augmented_epochs == 1 and not mixing.refine_flops.any()
