"""Results for other tools: pandas and xarray in one call, CSV, TensorBoard; and files of another layout."""

import csv

import h5py
import numpy as np
import pandas
import pytest
from conftest import FAST

from genfl_mpi import UserError, read_results
from genfl_mpi.analysis import summary, tables
from genfl_mpi.cli import main
from genfl_mpi.results import layout, reader
from genfl_mpi.results.layout import CLIENTS, PARTITION, ROUNDS, VERSION


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds by two alphas, of which one run has fewer rounds."""
    folder = tmp_path_factory.mktemp("runs")
    assert (
        main([*FAST, "sweep.seed=[1,2]", "sweep.partition.alpha=[0.5,1.0]", "rounds=2", f"output={folder}"])
        == 0
    )
    assert main([*FAST, "seed=1", "sweep.partition.alpha=[0.5]", "rounds=3", f"output={folder}"]) == 0
    return folder


def files(folder):
    return {path.stem: h5py.File(path) for path in sorted(folder.glob("*.h5"))}


def test_pandas_has_every_round_of_every_run(folder):
    read = read_results(folder)
    assert list(read)[:4] == ["run", "method", "seed", "partition.alpha"] and len(read) == 9
    for run, file in files(folder).items():
        own = read[read["run"] == run]
        assert own["device"].tolist() == [text.decode() for text in file["rounds/device"][:]]
        for name in set(ROUNDS) - {"accuracy_per_class", "device"}:
            assert np.array_equal(own[name], file["rounds"][name][:], equal_nan=True), name
        assert np.array_equal(
            own[[f"accuracy_per_class[{digit}]" for digit in range(10)]], file["rounds/accuracy_per_class"][:]
        )
    assert set(read["partition.alpha"]) == {0.5, 1.0} and set(read["seed"]) == {1, 2}


def test_pandas_has_the_other_tables(folder):
    clients, partition = read_results(str(folder), "clients"), read_results([folder], "partition")
    assert set(CLIENTS) <= set(clients) and len(clients) == 27
    assert partition["samples"].sum() == 4 * 200 and set(PARTITION) - {
        "pointers",
        "label_histograms",
        "shared_labels",
    } <= set(partition)


def test_an_images_seed_is_not_the_runs(tiny, tmp_path):
    assert main([*tiny, "rounds=1", "seed=7"]) == 0
    read = read_results(tmp_path / "results", "generated")
    assert (
        set(read["seed"]) == {7}
        and len(set(read["generated.seed"])) == len(read) == 10
        and "digit" in " ".join(read["prompt"])
    )


def test_a_swept_setting_is_a_column_and_a_coordinate(tmp_path):
    assert main([*FAST, "sweep.rho.policy=[size,uniform]", "rounds=1", f"output={tmp_path}"]) == 0
    read, array = read_results(tmp_path, "clients"), read_results(tmp_path, "clients", to="xarray")
    assert sorted(set(read["rho.policy"])) == ["size", "uniform"]
    assert set(read["rho"][read["rho.policy"] == "uniform"]) == {1 / 3}
    assert array["rho.policy"].values.tolist() == ["size", "uniform"] and (array["rho"][1] == 1 / 3).all()


def test_runs_that_have_no_common_array(tmp_path):
    for clients in (6, 8):
        assert main([*FAST, f"clients={clients}", "rounds=1", f"output={tmp_path}/{clients}"]) == 0
    folders = [tmp_path / "6", tmp_path / "8"]
    assert len(read_results(folders, "partition")) == 14
    with pytest.raises(UserError, match="different numbers of clients or classes have no common array"):
        read_results(folders, "partition", to="xarray")


@pytest.mark.parametrize("table", ["rounds", "clients", "generated", "partition"])
def test_xarray_is_along_the_runs(folder, table):
    read = read_results(folder, table, to="xarray")
    assert read.sizes["run"] == 4 and read["partition.alpha"].values.tolist() == [0.5, 1.0, 0.5, 1.0]
    if table == "rounds":
        for i, file in enumerate(files(folder).values()):
            values = file["rounds/accuracy"][:]
            assert (
                np.array_equal(read.accuracy.values[i, : len(values)], values)
                and np.isnan(read.accuracy.values[i, len(values) :]).all()
            )
        assert (
            read.accuracy.sel(run="fedavg_seed1_alpha0.5", round=3).notnull()
            and read.train_seconds.attrs["units"] == "s"
        )
        assert read.accuracy_per_class.dims == ("run", "round", "class")


def test_csv_is_what_pandas_reads(folder, tmp_path):
    assert main(["export", str(folder), "-o", str(tmp_path / "rounds.csv")]) == 0
    read = pandas.read_csv(tmp_path / "rounds.csv", keep_default_na=True)
    # Releases of pandas differ in how they read the last digit.
    pandas.testing.assert_frame_equal(read, read_results(folder), check_dtype=False, rtol=1e-15)
    with open(tmp_path / "rounds.csv") as file:
        assert len({len(row) for row in csv.reader(file)}) == 1


def test_tensorboard_gets_every_round(folder, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["export", str(folder), "--tensorboard", str(tmp_path)]) == 0
    for run, file in files(folder).items():
        events = EventAccumulator(str(tmp_path / run))
        events.Reload()
        logged = events.Scalars("test/accuracy")
        assert [one.step for one in logged] == file["rounds/round"][:].tolist()
        assert [one.value for one in logged] == pytest.approx(file["rounds/accuracy"][:].tolist(), rel=1e-6)


def test_what_is_not_installed_is_named(folder, tmp_path, monkeypatch, capsys):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(tables, "import_module", missing)
    assert main(["export", str(folder), "--tensorboard", str(tmp_path)]) == 2
    assert "pip install 'genfl_mpi[tensorboard]'" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"genfl_mpi\[tables\]"):
        read_results(folder)


def test_read_results_refuses_unknown_tables_and_libraries(folder):
    for arguments, message in (
        ((folder, "round"), "the tables are rounds, clients"),
        ((folder, "rounds", "polars"), "pandas or to xarray"),
        ((folder / "none",), "no such results file"),
    ):
        with pytest.raises(UserError, match=message):
            read_results(*arguments)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (VERSION + 1, "install that version or a newer one"),
        (VERSION - 1, "compute the run again"),
        (None, "no layout_version"),
    ],
)
def test_a_layout_that_is_not_known_is_explained(folder, tmp_path, version, message, capsys):
    path = tmp_path / "other.h5"
    path.write_bytes(next(folder.glob("*.h5")).read_bytes())
    with h5py.File(path, "r+") as file:
        if version is None:
            del file.attrs["layout_version"]
        else:
            file.attrs["layout_version"] = version
    assert main(["show", str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert version is None or f"layout {version}, written by genfl_mpi 0." in said


def test_generating_and_the_bank_are_apart_and_change_no_digest(tmp_path, monkeypatch):
    (tmp_path / "flat.py").write_text(
        "import numpy as np\n"
        "def grey(batch, shape):\n"
        "    return np.full((len(batch), *shape), 128, np.uint8)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = [*FAST, "method=aigc", "rounds=2", "generation.checkpoint=flat:grey", "generation.prompts=mnist"]
    run += [f"generation.bank={tmp_path}/bank", "generation.per_round=1", "generation.batch_size=5"]
    for name in ("first", "second"):
        assert main([*run, f"output={tmp_path}/{name}"]) == 0
    first, second = (tmp_path / name / "aigc_seed1.h5" for name in ("first", "second"))
    assert reader.digests(first) == reader.digests(second)
    with reader.open_results(first) as file:
        assert reader.read_columns(file, "rounds")["images_from_bank"].tolist() == [0, 0]
    with reader.open_results(second) as file:
        rounds = reader.read_columns(file, "rounds")
    assert rounds["images_from_bank"].tolist() == [10, 10] and (rounds["bank_seconds"] > 0).all()
    head, row, *legend = summary.table([second])
    assert head.split()[-3:] == ["seconds", "generating", "seeds"] and row.split()[-2] == "0.0*"
    assert any("images also came from the bank" in line for line in legend)
    assert not any("*" in line for line in summary.table([first]))
    with h5py.File(second, "r+") as file:  # as written before these columns
        for table, columns in layout.TABLES.items():
            sums = file[layout.CHECKSUMS][table][()]
            kept = [0, *(1 + place for place, name in enumerate(columns) if name not in layout.ADDED)]
            del file[layout.CHECKSUMS][table]
            file[layout.CHECKSUMS][table] = sums[:, kept]
            for name in columns.keys() & set(layout.ADDED):
                del file[table][name]
    with reader.open_results(second) as file:
        rounds = reader.read_columns(file, "rounds")
    assert rounds["images_from_bank"].tolist() == [-1, -1] and np.isnan(rounds["bank_seconds"]).all()
    assert reader.digests(first) == reader.digests(second)
