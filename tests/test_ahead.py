"""What is done before a run: prefetch, prompts, generate."""

import pytest
from conftest import mpirun, prepare

from genfl_mpi.cli import main


@pytest.mark.slow
def test_generate_fills_what_a_run_then_only_reads(tiny, tmp_path, capsys):
    arguments = [*tiny, f"generation.bank={tmp_path}/bank", "rounds=3", "generation.batch_size=5"]
    done = mpirun(2, "-m", "genfl_mpi", "generate", *arguments)
    assert done.returncode == 0, done.stderr
    assert "made 20 images" in done.stdout and "2 ranks" in done.stdout
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "bank").iterdir()}
    assert len(files) == 4
    next(iter(files)).unlink()  # as if the job had been killed before this batch
    assert main(["generate", *arguments]) == 0
    assert "made 5 images" in capsys.readouterr().out
    assert main(["generate", *arguments]) == 0
    assert "made 0 images" in capsys.readouterr().out
    stored = {file: file.stat().st_mtime_ns for file in (tmp_path / "bank").iterdir()}
    assert stored.keys() == files.keys() and sum(stored[file] != files[file] for file in files) == 1
    assert main(arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "bank").iterdir()} == stored


def test_two_jobs_share_a_bank(tiny, tmp_path):
    """Both make the same images at the same time: each file is whole, and both runs agree."""
    import subprocess

    from genfl_mpi.generation import bank
    from genfl_mpi.results import reader

    run, jobs = ["-m", "genfl_mpi", *tiny, f"generation.bank={tmp_path}/bank"], []
    for job in (1, 2):
        started, environment = prepare(None, [*run, f"output={tmp_path}/{job}"])
        jobs.append(subprocess.Popen(started, env=environment, stdout=subprocess.DEVNULL))
    assert [job.wait(timeout=200) for job in jobs] == [0, 0]
    assert all(
        bank.read_batch(file)["image"].shape == (10, 1, 28, 28) for file in (tmp_path / "bank").iterdir()
    )
    assert reader.digests(tmp_path / "1/genfl_seed1.h5") == reader.digests(tmp_path / "2/genfl_seed1.h5")


def test_the_partition_is_printed_and_drawn(tiny, tmp_path, capsys):
    from genfl_mpi.federation.simulation import Simulation

    assert main(["partition", *tiny, "data.public_pool=100"]) == 0
    said = capsys.readouterr().out
    histograms = Simulation(overrides=[*tiny, "data.public_pool=100"]).data["label_histograms"]
    sizes, labels = histograms.sum(1), (histograms > 0).sum(1)
    assert "3900 samples at 6 clients, 100 in the public pool, of 4000" in said
    assert (
        f"samples per client: {sizes.min()} to {sizes.max()}" in said
        and f"labels per client: {labels.min()} to {labels.max()} of 10" in said
    )
    assert "the cohorts of 2 rounds" in said
    assert (tmp_path / "results/partition.png").read_bytes().startswith(b"\x89PNG")


def test_cohorts_that_depend_on_a_world_are_not_known_in_advance(tiny, capsys):
    for more in (["selection.policy=energy"], ["incentive.base=1"]):
        assert main(["partition", *tiny, "world={}", *more]) == 0
        assert "the cohorts depend on the world, so they are not known in advance" in capsys.readouterr().out


def test_prompts_are_those_of_the_run(tiny, capsys):
    assert main(["prompts", *tiny]) == 0
    said = capsys.readouterr().out
    assert "seven" in said and "rounds 1 to 2, each: 10 images of 10 classes, 1 of each" in said
    assert "seed" not in said and said.count("seven") <= 3  # its name and examples, not a line for each image
    assert main(["prompts", *tiny, "--verbose"]) == 0
    assert capsys.readouterr().out.count("(seed ") == 10
    assert main(["prompts", *tiny, "generation.plan=cohort_deficit"]) == 0
    assert "its prompts are not known in advance" in capsys.readouterr().out
    assert main(["prompts", *tiny, "method=fedavg"]) == 2


def test_prefetch_names_what_is_there_and_what_cannot_be_had(tiny, capsys, monkeypatch):
    assert main(["prefetch", *tiny]) == 0
    said = capsys.readouterr().out
    assert "data set mnist5k: installed" in said and "generator digits: in " in said
    import huggingface_hub

    def offline(*_, **options):
        if options.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        assert not any("bin" in pattern or "ckpt" in pattern for pattern in options.get("allow_patterns", []))
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert main(["prefetch", *tiny, "generation.checkpoint=nobody/nothing"]) == 2
    assert "nobody/nothing cannot be fetched: no network" in capsys.readouterr().err


@pytest.mark.parametrize("plan", ["inverse_frequency", "deficit", "cohort_deficit"])
def test_every_plan_runs(tiny, tmp_path, plan):
    assert (
        main(
            [
                *tiny,
                f"generation.plan={plan}",
                "label_sharing.payload=presence",
                "label_sharing.refusal_rate=0.5",
            ]
        )
        == 0
    )


def test_a_reader_that_has_seen_enough_is_no_error(tiny):
    """As with `| head -n 1`: the pipe is closed after the first line, long before the last."""
    import subprocess

    started, environment = prepare(None, ["-m", "genfl_mpi", "partition", *tiny])
    run = subprocess.Popen(
        started, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "samples at 6 clients" in run.stdout.readline()
    run.stdout.close()
    assert run.wait(timeout=100) == 0, run.stderr.read()
    run.stderr.close()


def test_a_command_needs_of_the_generator_only_what_it_uses(fast, tmp_path, capsys):
    """partition needs no generator, and pretrain, which makes one, only the prompts."""
    arguments = [*fast, "method=genfl", "data.name=synthetic", "data.size=8", "data.samples=100"]
    assert main(["partition", *arguments]) == 0
    assert main(["pretrain", *arguments, f"pretraining.output={tmp_path}/made"]) == 2
    assert "has no prompts for data.name=synthetic; set generation.prompts" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "has no checkpoint or prompts for data.name=synthetic" in capsys.readouterr().err
