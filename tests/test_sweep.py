"""A sweep on more ranks than a run keeps busy: several runs at once, each on a group of ranks."""

import os
import signal

import pytest
from conftest import FAST, Job, mpirun, until

from genfl_mpi.cli import main
from genfl_mpi.config import loading
from genfl_mpi.results import checkpoint, progress, reader
from genfl_mpi.runs import sweep

NAMES = [f"fedavg_seed{seed}" for seed in (1, 2, 3)]
THREE = [*FAST, "sweep.seed=[1,2,3]"]


def test_as_many_groups_as_runs_can_be_kept_busy():
    def groups(ranks, *overrides):
        return sweep.groups(
            ranks,
            list(
                loading.load(
                    {}, ["cohort=10", "clients=20", "sweep.seed=[1,2,3,4,5,6,7]", *overrides]
                ).values()
            ),
        )

    assert [groups(ranks) for ranks in (1, 11, 21, 22, 64, 500)] == [1, 1, 1, 2, 5, 7]
    assert groups(64, "method=fedavg") == 6 and groups(64, "method=aigc") == 7
    assert groups(64, "runtime.ranks_per_run=32") == 2 and groups(4, "runtime.ranks_per_run=32") == 1


PATCHED = """
import os, sys
from genfl_mpi.cli import main
from genfl_mpi.data import datasets
from genfl_mpi.util.errors import UserError
from genfl_mpi.results.writer import Writer
load, append = datasets.load, Writer.append
def counted(data):
    print("data set read;", flush=True)
    return load(data)
datasets.load = counted
def full(self, record):
    if self.path.stem == os.environ.get("FULL"):
        raise UserError("no space left")
    append(self, record)
Writer.append = full
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def patched(tmp_path):
    (tmp_path / "patched.py").write_text(PATCHED)
    return tmp_path / "patched.py"


@pytest.mark.parametrize(("ranks", "each"), [pytest.param(2, 1, marks=pytest.mark.slow), (4, 2)])
def test_groups_compute_what_one_after_another_would(ranks, each, tmp_path, patched):
    assert main([*THREE, "rounds=3", f"output={tmp_path}/one"]) == 0
    done = mpirun(
        ranks,
        patched,
        *THREE,
        "rounds=3",
        f"output={tmp_path}/groups",
        f"runtime.ranks_per_run={each}",
        "--fresh",
    )
    assert done.returncode == 0, done.stderr
    assert (
        f"3 runs on 2 groups of {each} to {each} ranks" in done.stdout
        and "3 runs in" in done.stdout
        and "±" in done.stdout
    )
    assert done.stdout.count("data set read;") == 1, "once a node"
    assert (tmp_path / "groups/accuracy.png").exists() and sorted(
        path.name for path in (tmp_path / "groups").iterdir()
    ) == ["accuracy.png", *(f"{name}.h5" for name in NAMES)]
    for name in NAMES:
        assert reader.digests(tmp_path / f"groups/{name}.h5") == reader.digests(tmp_path / f"one/{name}.h5")
        with reader.open_results(tmp_path / f"groups/{name}.h5") as file:
            assert set(file["ranks/rank"][:]) == set(range(each))
    again = mpirun(
        ranks,
        "-m",
        "genfl_mpi",
        *THREE,
        "rounds=3",
        f"output={tmp_path}/groups",
        f"runtime.ranks_per_run={each}",
    )
    assert again.returncode == 0 and again.stdout.count("already finished") == 3


def test_all_groups_leave_when_they_are_asked_to(tmp_path):
    arguments = [*THREE, f"output={tmp_path}/cut", "runtime.ranks_per_run=1", "checkpoint.every_rounds=1000"]
    files = [tmp_path / f"cut/{name}.h5" for name in NAMES]
    job = Job(2, [*arguments, "rounds=5000"], files[0], tmp_path / "log")
    until(lambda: all(about and about[0]["round"] > 3 for about in map(progress.read, files[:2])))
    os.kill(job.process.pid, signal.SIGTERM)
    assert job.end() == 75, job.said()
    said = job.said()
    assert said.count("stopped after round") == 2 and "Traceback" not in said and not files[2].exists()
    rounds = max(checkpoint.list_rounds(file)[-1] for file in files[:2]) + 1
    assert mpirun(2, "-m", "genfl_mpi", *arguments, f"rounds={rounds}").returncode == 0
    assert main([*THREE, f"rounds={rounds}", f"output={tmp_path}/whole"]) == 0
    assert [reader.digests(file) for file in files] == [
        reader.digests(tmp_path / f"whole/{name}.h5") for name in NAMES
    ]


def test_what_one_group_cannot_write_ends_the_job_and_names_the_run(tmp_path, patched):
    done = mpirun(
        4,
        patched,
        *THREE,
        "rounds=5000",
        f"output={tmp_path}/results",
        "runtime.ranks_per_run=2",
        timeout=60,
        FULL=NAMES[1],
    )
    assert done.returncode == 2
    assert done.stderr.count("genfl_mpi: fedavg_seed2: no space left") == 1 and "Traceback" not in done.stderr
    with reader.open_results(tmp_path / f"results/{NAMES[0]}.h5") as file:
        assert not reader.is_finished(file)


def test_a_group_that_fails_takes_the_others_along_and_names_the_run(tmp_path):
    (tmp_path / "failing.py").write_text(
        "def select(state):\n    assert (state.config.seed, state.round) != (2, 1), 'no'\n"
        "    return [0, 1, 2]\n"
    )
    done = mpirun(
        2,
        "-m",
        "genfl_mpi",
        *THREE,
        "selection.policy=failing:select",
        "rounds=5000",
        f"output={tmp_path}/results",
        "runtime.ranks_per_run=1",
        timeout=60,
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    )
    assert done.returncode not in (0, 2)
    assert "run fedavg_seed2, round 2, the selection policy select: AssertionError: no" in done.stderr
    with reader.open_results(tmp_path / f"results/{NAMES[1]}.h5") as file:
        assert file["rounds/round"][:].tolist() == []


AIGC = [
    *FAST,
    "method=aigc",
    "rounds=3",
    "generation.checkpoint=flat:grey",
    "generation.prompts=mnist",
    "generation.per_round=1",
    "generation.batch_size=5",
]
BY_DEFICIT = ["generation.plan=deficit", "generation.count=total", "generation.per_round=7"]


@pytest.fixture
def flat(tmp_path, monkeypatch):
    """A generator that costs nothing. Returns the settings of its bank."""
    (tmp_path / "flat.py").write_text(
        "import numpy as np\n"
        "def grey(batch, shape):\n"
        "    return np.stack([np.full(shape, 20 * label, np.uint8) for label in batch.label])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return [f"generation.bank={tmp_path}/bank"]


def test_equal_runs_of_a_sweep_are_computed_once(flat, tmp_path, capsys):
    sweep, single = [*AIGC, *flat, "sweep.partition.alpha=[0.1,5.0]"], [*AIGC, *flat]
    assert main([*sweep, f"output={tmp_path}/swept"]) == 0
    said = capsys.readouterr().out
    first, second = (tmp_path / f"swept/aigc_seed1_alpha{alpha}.h5" for alpha in ("0.1", "5.0"))
    assert f"{second.stem}: copies the rounds of {first}" in said and said.count("round 3/3") == 1
    assert "1 run copied from equal runs" in " ".join(said.split())
    assert main([*single, "partition.alpha=5.0", f"output={tmp_path}/alone"]) == 0
    assert reader.digests(second) == reader.digests(tmp_path / "alone/aigc_seed1.h5")
    assert reader.digests(second)[1] != reader.digests(first)[1]  # other clients' accuracy, other partition
    capsys.readouterr()
    assert main(["show", str(second)]) == 0
    assert f"copied from {first}" in "".join(capsys.readouterr().out.split("\n    "))
    assert main([*sweep, f"output={tmp_path}/swept"]) == 0
    assert capsys.readouterr().out.count("already finished") == 2
    assert main([*sweep, "rounds=4", f"output={tmp_path}/swept"]) == 0  # a copy can be continued
    assert main([*single, "rounds=4", "partition.alpha=5.0", f"output={tmp_path}/alone"]) == 0
    assert reader.digests(second) == reader.digests(tmp_path / "alone/aigc_seed1.h5")


def test_settings_of_the_clients_training_do_not_make_runs_without_it_differ(flat, tmp_path, capsys):
    sweep = ["sweep.privacy.clip=[0.25,0.5]", "sweep.selection.policy=[random,poisson]", "rounds=1"]
    fixed = ["privacy.noise_multiplier=1", "privacy.delta=1e-3", "label_sharing.refusal_rate=1"]
    assert main([*AIGC, *flat, *sweep, *fixed, f"output={tmp_path}/runs"]) == 0
    assert capsys.readouterr().out.count("copies the rounds") == 3


@pytest.mark.parametrize(
    "changes",
    [
        ["sweep.generation.per_round=[1,2]"],
        ["sweep.augmented.lr=[0.01,0.1]"],
        ["sweep.partition.alpha=[0.01,5.0]", "label_sharing.refusal_rate=0.5", *BY_DEFICIT],
        ["sweep.partition.alpha=[0.1,5.0]", "method=genfl"],
        ["sweep.partition.alpha=[0.1,5.0]", "world={}"],
        ["sweep.partition.alpha=[0.1,5.0]", "probes.every=1"],
        ["sweep.partition.alpha=[0.1,5.0]", "calibration.every=1", "calibration.moments=clients"],
    ],
)
def test_runs_that_may_differ_are_computed(changes, flat, tmp_path, capsys):
    assert main([*AIGC, *flat, "rounds=1", *changes, f"output={tmp_path}/runs"]) == 0
    said = capsys.readouterr().out
    assert "copies the rounds" not in said and said.count("round 1/1") == 2
