"""Stored data are checked before use: their run, their checksums, and the bits of recomputed rounds."""

import os
import re
import resource
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import FAST, TINY, interrupt

from genfl_mpi.cli import main
from genfl_mpi.federation.evaluator import Evaluator
from genfl_mpi.federation.worker import Worker
from genfl_mpi.results import checkpoint, client_state, disk, progress, reader, superblock
from genfl_mpi.results.client_state import NOWHERE, ClientStates
from genfl_mpi.results.layout import PARTITION, TABLES
from genfl_mpi.util.errors import UserError

RUN, OTHER = "0123456789ab", "ba9876543210"
SCAFFOLD = [*FAST, "algorithm.name=scaffold", "rounds=6"]


@pytest.fixture
def cut(tmp_path, monkeypatch):
    """Return a function that runs in a folder, stops after some rounds, and returns the results file."""

    def compute(rounds, overrides, name="results"):
        interrupt(monkeypatch, rounds)
        assert main([*overrides, f"output={tmp_path}/{name}"]) == 1
        monkeypatch.undo()
        return tmp_path / name / "fedavg_seed1.h5"

    return compute


def run_of(path):
    with reader.open_results(path) as file:
        return reader.read_run_id(file)


def rows(path):
    with reader.open_results(path) as file:
        return reader.read_columns(file, "rounds", ["round"])["round"].tolist()


def said_once(capsys):
    """Return the single line that a refused command printed."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("genfl_mpi: ")
    return line


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


# Files of other runs.


def test_a_checkpoint_of_another_run_is_refused(cut, capsys):
    ours, others = cut(3, SCAFFOLD), cut(4, SCAFFOLD, "others")
    assert run_of(ours) != run_of(others), "two starts of one configuration are two runs"
    before = ours.read_bytes()
    shutil.rmtree(checkpoint.path_for(ours))
    shutil.copytree(checkpoint.path_for(others), checkpoint.path_for(ours))
    capsys.readouterr()
    assert main([*SCAFFOLD, f"output={ours.parent}"]) == 2
    line = said_once(capsys)
    assert f"{checkpoint.path_for(ours)}/4.safetensors: a checkpoint of run {run_of(others)}, " in line
    assert f"{ours.name} is of run {run_of(ours)}" in line and ours.read_bytes() == before


def test_a_state_file_of_another_run_is_refused(cut, capsys):
    ours, others = cut(3, SCAFFOLD), cut(3, SCAFFOLD, "others")
    shutil.rmtree(ours.with_suffix(".variates"))
    shutil.copytree(others.with_suffix(".variates"), ours.with_suffix(".variates"))
    capsys.readouterr()
    assert main([*SCAFFOLD, f"output={ours.parent}"]) == 2
    line = said_once(capsys)
    assert f"is of run {run_of(others)}, and this is run {run_of(ours)}" in line
    assert f"{ours.with_suffix('.variates')}/" in line


def test_a_run_keeps_its_id_and_forks_and_fresh_runs_get_new_ones(cut, tmp_path):
    keep = [*SCAFFOLD, "checkpoint.keep=1"]
    path = cut(3, keep)
    first = run_of(path)
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert main([*keep, f"output={tmp_path}/results"]) == 0 and run_of(path) == first
    assert main(["fork", str(path), "--at", "3", f"output={tmp_path}/fork"]) == 0
    fork = tmp_path / "fork/fedavg_seed1.h5"
    assert run_of(fork) != first and reader.digests(fork) == reader.digests(path)
    for folder in (checkpoint.path_for(fork), fork.with_suffix(".variates")):
        content = b"".join(file.read_bytes() for file in folder.iterdir())
        assert run_of(fork).encode() in content and first.encode() not in content
    assert main([*SCAFFOLD, "rounds=1", f"output={tmp_path}/results", "--fresh"]) == 0
    assert run_of(path) not in (first, run_of(fork))


def test_other_files_are_not_touched(cut, capsys):
    path = cut(3, SCAFFOLD)
    names = ["best.safetensors", "2 (copy).safetensors", "007.safetensors", "\u0663.safetensors", "notes.txt"]
    of_others = [checkpoint.path_for(path) / name for name in names]
    states = path.with_suffix(".variates")
    of_others += [states / f"{name}.states" for name in ("a_b", "01_1", "1_2 (copy)")]
    folders = [checkpoint.path_for(path) / "9.safetensors", states / "5_1.states"]
    for file in of_others:
        file.write_bytes(b"of others")
    for folder in folders:
        folder.mkdir()
    assert main(["show", str(path)]) == 0 and "of rounds 2, 3:" in capsys.readouterr().out
    assert main([*SCAFFOLD, f"output={path.parent}"]) == 0
    checkpoint.remove(path)
    assert all(file.read_bytes() == b"of others" for file in of_others)
    assert all(folder.is_dir() for folder in folders)
    assert sorted(checkpoint.path_for(path).iterdir()) == sorted(of_others[:5] + folders[:1])


def test_the_checksum_of_a_failed_append_does_not_count(fast, tmp_path):
    """An I/O error may occur after the row of checksums is allocated, and before it is written."""
    assert main([*fast, "rounds=2"]) == 0
    path = tmp_path / "results/fedavg_seed1.h5"
    before = reader.digests(path)
    with h5py.File(path, "r+") as file:
        for table in ("rounds", "clients"):
            sums = file[f"checksums/{table}"]
            sums.resize(len(sums) + 1, axis=0)
    assert reader.digests(path) == before


def test_an_append_whose_last_write_failed_is_not_counted(killed, tmp_path):
    """HDF5 may write how long the numbering is although the numbers themselves could not be written."""
    for table in ("rounds", "clients"):
        with h5py.File(killed, libver="latest", swmr=True) as file:
            numbering = file[table][next(iter(TABLES[table]))]
            place, rows = numbering.id.get_chunk_info(0).byte_offset, len(numbering)
        content = bytearray(killed.read_bytes())
        end = place + rows * 8
        content[end - 8 * (rows // 3) : end] = bytes(8 * (rows // 3))
        killed.write_bytes(content)
        with reader.open_results(killed) as file:
            assert len(reader.read_columns(file, table)["round"]) == rows // 3 * 2
    with reader.open_results(killed) as file:
        assert reader.count_rounds(file) == 2
    shutil.rmtree(checkpoint.path_for(killed))
    assert main([*FAST, "rounds=6", f"output={killed.parent}"]) == 0
    assert reader.digests(killed) == reader.digests(tmp_path / "growing/fedavg_seed1.h5")


# State files.

VALUES = np.arange(4, dtype=np.float32)


def written(folder, run=RUN, client=3, round=7, rank=0):
    """Write a client's state as the second record of a file; return the states and its location."""
    states = ClientStates(folder, {"control": (4,)}, run, rank)
    states.write(1, round, {"control": np.ones(4, np.float32)})
    offset, checksum = states.write(client, round, {"control": VALUES})
    states.commit()
    return states, (round, rank, offset, checksum)


def test_records_of_a_file_are_read_by_their_location(tmp_path):
    states, location = written(tmp_path, rank=2)
    states.read_ahead(location)
    assert (states.read(3, 7, location)["control"] == VALUES).all()
    assert not states.read(3, 0, location)["control"].any(), "a client without state has zeros"
    assert (tmp_path / "7_2.states").stat().st_size == 2 * states.size == 2 * (40 + 16)
    states.read_ahead((8, 0, 0, 0))  # a missing file is left to `read`


def test_every_flipped_bit_of_a_state_file_is_detected(tmp_path):
    states, location = written(tmp_path)
    path = tmp_path / "7_0.states"
    content = path.read_bytes()
    for place in range(states.size, len(content)):
        path.write_bytes(content)
        flip(path, place, place % 8)
        with pytest.raises(UserError) as error:
            states.read(3, 7, location)
        assert f"{path}: the state of client 3 is" in str(error.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is damaged"),
        (b"\x93NUMPY" * 100, "is damaged"),
        (None, "is missing"),
        ((RUN, 2, 7), "is damaged"),
        ((RUN, 3, 6), "is damaged"),
        ((OTHER, 3, 7), f"is of run {OTHER}, and this is run {RUN}"),
    ],
)
def test_an_invalid_state_file_is_one_line(content, fault, tmp_path):
    """Empty, of another format, missing, renamed from another client or round, and of another run."""
    path, (_, location) = tmp_path / "7_0.states", written(tmp_path / "right")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        run, client, round = content
        written(tmp_path / "others", run, client, round)
        (tmp_path / f"others/{round}_0.states").rename(path)
    with pytest.raises(UserError) as error:
        ClientStates(tmp_path, {"control": (4,)}, RUN).read(3, 7, location)
    line = str(error.value)
    assert f"{path}: the state of client 3 {fault}" in line and "\n" not in line


def test_a_state_file_over_a_size_limit_is_one_line(tmp_path):
    states, before = (
        ClientStates(tmp_path / "states", {"control": (1000,)}, RUN),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    location = 6, 0, *states.write(3, 6, {"control": np.ones(1000, np.float32)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(UserError, match="7_0.states: cannot be written: File too large; finished"):
            states.write(3, 7, {"control": np.ones(1000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert states.read(3, 6, location)["control"].all()


def test_state_files_are_on_disk_before_the_checkpoint_that_refers_to_them(tmp_path, monkeypatch):
    """Check the order of writes and flushes, which makes a power cut harmless."""
    done, flush, replace, sync, write = [], disk.flush, os.replace, os.fsync, os.write
    path_of = lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: E731

    def note(what, path, call, *arguments):
        result = call(*arguments)
        done.append((what, Path(path)))
        return result

    monkeypatch.setattr(disk, "flush", lambda path: note("flush", path, flush, path))
    monkeypatch.setattr(os, "replace", lambda old, new: note("rename", new, replace, old, new))
    monkeypatch.setattr(os, "fsync", lambda one: note("sync", path_of(one), sync, one))
    monkeypatch.setattr(os, "write", lambda one, data: note("write", path_of(one), write, one, data))
    assert main([*SCAFFOLD, "rounds=2", f"output={tmp_path}"]) == 0
    states, checkpoints = tmp_path / "fedavg_seed1.variates", tmp_path / "fedavg_seed1.checkpoint"
    unsynced, unnamed, syncs = set(), set(), 0
    for place, (what, path) in enumerate(done):
        if what == "write" and path.parent == states:
            unsynced.add(path)
            unnamed.add(path)
        elif what == "sync" and path.parent == states:
            unsynced.discard(path)
            syncs += 1
        elif what == "flush" and path == states:
            unnamed.clear()
        elif what == "rename" and path.parent == checkpoints:
            assert not unsynced and not unnamed
            assert ("flush", tmp_path / "fedavg_seed1.h5") in done[:place]
            assert ("flush", checkpoints) in done[place:]
    assert syncs == 2, "one for each round"
    assert len(list(states.iterdir())) and len(list(checkpoints.iterdir())) == 2


def test_states_are_compacted_and_pruned(tmp_path, monkeypatch):
    """Old records do not accumulate: without a limit on them, each round keeps only what is needed."""
    monkeypatch.setattr(client_state, "SLACK", 0)
    states = ClientStates(tmp_path, {"control": (4,)}, RUN)
    trained, locations = np.zeros(9, dtype=np.int64), np.full((9, 4), NOWHERE, dtype=np.int64)
    rng, expected, compacted = np.random.default_rng(1), {}, 0
    for round in range(1, 40):
        for client in rng.permutation(9)[:4].tolist():
            expected[client] = np.float32([round, client, 0, 0])
            locations[client] = round, 0, *states.write(client, round, {"control": expected[client]})
            trained[client] = round
        states.commit()
        if states.is_scattered(locations):
            locations, compacted = states.compact(round, trained, locations), compacted + 1
        states.prune(round, [locations])
        size = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert size <= (2 * len(expected) + 4) * states.size
        for client, values in expected.items():
            assert (states.read(client, int(trained[client]), locations[client])["control"] == values).all()
    assert 3 < compacted < 30


def test_an_interrupted_compaction_leaves_the_old_records(tmp_path, monkeypatch):
    states = ClientStates(tmp_path, {"control": (4,)}, RUN)
    trained, locations = np.full(3, 7), np.full((3, 4), NOWHERE, dtype=np.int64)
    for client in range(3):
        locations[client] = 7, 0, *states.write(client, 7, {"control": VALUES + client})
    states.commit()
    append, calls = states._append, []

    def failing(path, parts):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return append(path, parts)

    monkeypatch.setattr(states, "_append", failing)
    with pytest.raises(KeyboardInterrupt):
        states.compact(8, trained, locations)
    again = ClientStates(tmp_path, {"control": (4,)}, RUN)
    moved = again.compact(8, trained, locations)  # replaces what the first one left
    assert (tmp_path / "8_compact.states").stat().st_size == 3 * states.size
    for where in (locations, moved):
        assert [again.read(client, 7, where[client])["control"][0] for client in range(3)] == [0, 1, 2]


def test_a_run_with_compaction_has_the_same_bits(tmp_path, monkeypatch, cut):
    assert main([*SCAFFOLD, f"output={tmp_path}/plain"]) == 0
    monkeypatch.setattr(client_state, "SLACK", -(10**9))  # in every round
    assert main([*SCAFFOLD, "rounds=3", f"output={tmp_path}/compact"]) == 0
    assert main([*SCAFFOLD, f"output={tmp_path}/compact"]) == 0
    paths = [tmp_path / name / "fedavg_seed1.h5" for name in ("plain", "compact")]
    assert reader.digests(paths[0]) == reader.digests(paths[1])
    assert list(paths[1].with_suffix(".variates").glob("6_compact.states"))


# Results files.


# A run with rows in every table.
FULL = [
    *TINY,
    "audit=true",
    "attack.share=0.5",
    "personal.method=finetune",
    "personal.every=1",
    "hindsight.every=1",
    "hindsight.points=2",
    "probes.every=1",
    "probes.clients=2",
    "probes.epochs=1",
    "calibration.every=1",
]


@pytest.fixture(scope="module")
def full(tmp_path_factory, bank):
    """Return a results file with rows in every table."""
    folder = tmp_path_factory.mktemp("full")
    assert main([*FULL, f"output={folder}", f"generation.bank={bank}"]) == 0
    return folder / "genfl_seed1.h5"


@pytest.fixture
def damaged(full, tmp_path):
    """Return a function that copies the file and flips a bit of a data set's first stored value."""

    def damage(name):
        path = tmp_path / full.name
        shutil.copy(full, path)
        with h5py.File(path) as file:
            place = file[name].id.get_chunk_info(0).byte_offset
        flip(path, place)
        return path

    return damage


ARRAYS = ["weights", *(f"partition/{name}" for name in PARTITION)]


@pytest.mark.parametrize("table", [*TABLES, "written at once"])
def test_a_flipped_bit_in_any_column_is_named(table, damaged):
    for name in [f"{table}/{name}" for name in TABLES[table]] if table in TABLES else ARRAYS:
        with reader.open_results(path := damaged(name)) as file, pytest.raises(UserError) as error:
            reader.read_columns(file, table) if table in TABLES else reader.read_array(file, name)
        assert str(error.value).startswith(f"{path}: the file is damaged: {name} is corrupt; ")


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_neither_finishes_nor_restarts_a_run(bit, full, tmp_path):
    with h5py.File(full) as file:
        place = file["finished"].id.get_offset()
    path = tmp_path / full.name
    content = bytearray(full.read_bytes())
    for mark in (0, 255):
        content[place] = mark ^ 1 << bit
        path.write_bytes(content)
        with (
            reader.open_results(path) as file,
            pytest.raises(UserError, match="finished is corrupt"),
        ):
            reader.is_finished(file)


def test_no_command_uses_a_damaged_column(damaged, tmp_path, bank, capsys):
    path = damaged("rounds/accuracy")
    output = {"plot": "a.png", "export": "a.csv", "report": "a.html", "price": "b.png", "claims": "a.md"}
    commands = [["show", path], ["digest", path]]
    commands += [[command, path, "-o", tmp_path / name] for command, name in output.items()]
    commands.append([*FULL, "rounds=3", f"output={tmp_path}", f"generation.bank={bank}"])
    before = path.read_bytes()
    capsys.readouterr()
    for command in commands:
        assert main([str(word) for word in command]) == 2, command
        assert f"{path}: the file is damaged: rounds/accuracy is corrupt" in said_once(capsys)
    assert path.read_bytes() == before
    for name in ("clients/epochs", "generated/label", "partition/label_histograms"):
        assert main(["digest", str(damaged(name))]) == 2
        assert f" {name} is corrupt" in said_once(capsys)
    for name in ("clients/loss_first_epoch", "ranks/rank"):
        damaged(name)
        assert main(commands[-1]) == 2 and f" {name} is corrupt" in said_once(capsys)


def test_a_changed_attribute_is_detected(full, tmp_path, capsys):
    content, path = full.read_bytes(), tmp_path / full.name
    assert content.count(b"clients: 6") == 1, "in the resolved configuration"
    path.write_bytes(content.replace(b"clients: 6", b"clients: 7"))
    assert main(["show", str(path)]) == 2
    assert "damaged: an attribute of /config or /environment is corrupt" in said_once(capsys)


def test_no_flipped_bit_changes_the_data_read(full, tmp_path):
    """Including HDF5's internal structures: a sample of the whole file."""
    content, path, noticed = full.read_bytes(), tmp_path / full.name, 0

    def read():
        with reader.open_results(path) as file, reader.report_damage(path):
            tables = [reader.read_columns(file, table).values() for table in (*TABLES, "partition")]
            arrays = [*(array for columns in tables for array in columns), reader.read_array(file, "weights")]
            return reader.read_config(file), reader.is_finished(file), [array.tobytes() for array in arrays]

    shutil.copy(full, path)
    whole = read()
    for place in np.random.default_rng(1).choice(len(content), 100, replace=False).tolist():
        path.write_bytes(content)
        flip(path, place, place % 8)
        try:
            assert read() == whole, place
        except UserError as error:
            noticed += 1
            assert "\n" not in str(error)
    assert noticed > 5


# After a kill.


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """Return a results file of a run that was killed after three rounds."""
    growing, path = tmp_path / "growing/fedavg_seed1.h5", tmp_path / "killed/fedavg_seed1.h5"
    train = Worker.train

    def copied(self, round, clock):
        if round == 3:
            path.parent.mkdir()
            shutil.copy(growing, path)
            shutil.copytree(checkpoint.path_for(growing), checkpoint.path_for(path))
            assert len(rows(growing)) == 3
            assert superblock.read(growing).is_marked, "not cleared: its writer is alive"
        return train(self, round, clock)

    monkeypatch.setattr(Worker, "train", copied)
    assert main([*FAST, "rounds=6", f"output={growing.parent}"]) == 0
    monkeypatch.undo()
    return path


@pytest.mark.parametrize("command", ["show", "summary", "read_results", "run"])
def test_the_first_command_after_a_kill_lets_other_tools_read_the_file(command, killed, tmp_path):
    from genfl_mpi import read_results

    with pytest.raises(OSError):
        h5py.File(killed)
    if command == "read_results":
        assert len(read_results(killed)) == 3
    elif command == "run":
        assert main([*FAST, "rounds=2", f"output={killed.parent}"]) == 2, "it has more rounds already"
    else:
        assert main([command, str(killed)]) == 0
    with h5py.File(killed) as file:
        assert file["rounds/round"][:].tolist() == [1, 2, 3]
    assert main([*FAST, "rounds=6", f"output={killed.parent}"]) == 0
    assert reader.digests(killed) == reader.digests(tmp_path / "growing/fedavg_seed1.h5")


def test_data_behind_the_end_of_file_address_of_a_killed_writer_are_read(killed):
    """A kill may come after new data and the index are written, and before the superblock is."""
    with h5py.File(killed, libver="latest", swmr=True) as file:
        place = file["rounds/round"].id.get_chunk_info(0).byte_offset
    content = bytearray(killed.read_bytes())
    content[superblock.END] = place.to_bytes(8, "little")
    content[superblock.SIZE - 4 : superblock.SIZE] = superblock._lookup3(
        content[: superblock.SIZE - 4]
    ).to_bytes(4, "little")
    killed.write_bytes(content)
    assert superblock.read(killed) == (True, True)
    assert rows(killed) == [1, 2, 3] and not superblock.read(killed).is_marked


def test_the_flags_of_a_file_in_use_stay(killed):
    before = killed.read_bytes()
    job = progress.Progress(killed, 0, 1)
    assert rows(killed) == [1, 2, 3] and killed.read_bytes() == before
    job.close()
    killed.write_bytes(before[:-1])  # also for a truncated file
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        reader.open_results(killed)
    assert superblock.read(killed) == (True, False)
    killed.write_bytes(before)
    assert rows(killed) == [1, 2, 3] and not superblock.read(killed).is_marked


# Rounds after the last checkpoint.


def test_rounds_after_the_checkpoint_outlive_every_kill(cut, tmp_path, capsys):
    run = [*FAST, "rounds=10", "checkpoint.every_rounds=5", "algorithm.name=fedadam"]
    assert main([*run, f"output={tmp_path}/whole"]) == 0
    path, seconds = cut(8, run), None
    for stop in (6, 7, 5):  # each before the last stored round
        with reader.open_results(path) as file:
            measured = reader.read_columns(file, "rounds", ["round_seconds"])["round_seconds"][:8]
        assert seconds is None or np.array_equal(measured, seconds), (
            "the rows are those of the first computation"
        )
        seconds = measured
        capsys.readouterr()
        cut(stop, run)
        said = capsys.readouterr().out
        again = "recomputes rounds 6 to 8 and compares them with the stored results"
        assert f"continues after round 5; {again}" in said
        assert "/10  accuracy" not in said and len(progress.read_rounds(path)) == 1 + 8
        assert rows(path) == list(range(1, 9))
    assert main([*run, f"output={tmp_path}/results"]) == 0
    said = capsys.readouterr().out
    assert [int(round) for round in re.findall(r"round +(\d+)/10", said)] == [9, 10]
    assert reader.digests(path) == reader.digests(tmp_path / "whole/fedavg_seed1.h5")


def test_rounds_before_the_first_checkpoint_stay(cut, tmp_path, capsys):
    run = [*FAST, "rounds=5", "checkpoint.every_rounds=9"]
    path = cut(4, run)
    assert not checkpoint.list_rounds(path)
    name = run_of(path)
    cut(1, run)
    said = "has no checkpoint yet; recomputes rounds 1 to 4 and compares them with the stored results"
    assert said in capsys.readouterr().out
    assert rows(path) == [1, 2, 3, 4] and run_of(path) == name
    assert main([*run, "rounds=3", f"output={tmp_path}/results"]) == 2
    assert "already holds 4 rounds, more than rounds=3" in said_once(capsys)
    assert main([*run, f"output={tmp_path}/results"]) == 0 and main([*run, f"output={tmp_path}/whole"]) == 0
    assert reader.digests(path) == reader.digests(tmp_path / "whole/fedavg_seed1.h5")


def test_a_recomputed_round_that_differs_is_reported(cut, tmp_path, monkeypatch, capsys):
    run = [*FAST, "rounds=10", "checkpoint.every_rounds=5"]
    path, evaluate = cut(8, run), Evaluator.evaluate

    def differently(self, omega, round):
        found = evaluate(self, omega, round)
        return found._replace(loss=np.nextafter(found.loss, np.inf)) if round == 7 else found

    monkeypatch.setattr(Evaluator, "evaluate", differently)
    capsys.readouterr()
    assert main([*run, f"output={tmp_path}/results"]) == 2
    assert f"{path}: round 7 computed again differs from what is stored in rounds/loss: " in said_once(capsys)
    assert rows(path) == list(range(1, 9))
    monkeypatch.undo()
    assert main([*run, f"output={tmp_path}/results"]) == 0


def test_settings_of_observations_may_change_for_recomputed_rounds(cut, tmp_path):
    run = [*FAST, "rounds=4", "checkpoint.every_rounds=9"]
    path = cut(3, run)
    assert main([*run, "audit=true", f"output={tmp_path}/results"]) == 0
    with reader.open_results(path) as file:
        assert set(reader.read_columns(file, "audit", ["round"])["round"]) == {4}
