"""The figures: what is plotted is what the files hold."""

import h5py
import matplotlib
import numpy as np
import pytest
from conftest import FAST, small_sweep, with_new_checksums
from matplotlib.colors import to_hex

from genfl_mpi.analysis import cost_figures, curves, figures, summary
from genfl_mpi.analysis.timeline import spans, timeline
from genfl_mpi.cli import main
from genfl_mpi.config.sections.samples import Data
from genfl_mpi.data import datasets
from genfl_mpi.util import plotting
from genfl_mpi.util.text import enumerated


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bank):
    return small_sweep(tmp_path_factory.mktemp("runs"), bank)


@pytest.fixture
def paths(folder):
    return sorted(folder.glob("*.h5"))


def column(paths, name, method):
    return np.array([h5py.File(path)[name][:] for path in paths if path.stem.startswith(method)])


@pytest.mark.parametrize(
    ("draw", "name", "unit"), [(curves.accuracy, "accuracy", 100), (curves.loss, "loss", 1)]
)
def test_curves_are_means_with_bands_of_a_deviation(paths, draw, name, unit):
    [axes] = draw(paths).axes
    for line, band, method in zip(axes.lines, axes.collections, ("fedavg", "genfl"), strict=True):
        values = unit * column(paths, f"rounds/{name}", method)
        assert line.get_ydata() == pytest.approx(values.mean(0)) and line.get_xdata().tolist() == [1, 2]
        low, high = band.get_datalim(axes.transData).intervaly
        deviation = values.std(0, ddof=1)
        assert (low, high) == pytest.approx(
            (min(values.mean(0) - deviation), max(values.mean(0) + deviation))
        )
    assert [line.get_color() for line in axes.lines] == [
        plotting.COLOURS["FedAvg"],
        plotting.COLOURS["GenFL"],
    ]


def test_many_kinds_of_runs_can_be_told_apart(tmp_path):
    """One method, more settings than line styles: the legend, too large for the axes, fits below them."""
    assert (
        main(
            [
                *FAST,
                "rounds=2",
                "sweep.training.lr=[0.01,0.02,0.03,0.05,0.1]",
                "sweep.algorithm.name=[fedavg,fedprox]",
                f"output={tmp_path}",
            ]
        )
        == 0
    )
    figure = curves.accuracy(sorted(tmp_path.glob("*.h5")))
    [axes] = figure.axes
    assert (
        len({(to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines})
        == len(axes.lines)
        == 10
    )
    assert axes.get_legend() is None and "FedAvg, lr 0.05, algorithm fedprox" in [
        text.get_text() for text in figure.legends[0].get_texts()
    ]
    figure.draw_without_rendering()
    inside, box = figure.bbox, figure.legends[0].get_window_extent()
    assert (
        inside.x0 <= box.x0
        and box.x1 <= inside.x1
        and inside.y0 <= box.y0
        and box.y1 <= axes.get_window_extent().y0
    )


def test_accuracy_of_each_class(paths):
    shown = [axes.images[0].get_array() for axes in curves.classes(paths).axes if axes.images]
    assert len(shown) == 2
    for image, method in zip(shown, ("fedavg", "genfl")):
        assert np.allclose(image, 100 * column(paths, "rounds/accuracy_per_class", method).mean(0).T)


def test_partition_shows_each_clients_histogram(paths):
    axes = figures.partition(paths[0]).axes[0]
    histograms = h5py.File(paths[0])["partition/label_histograms"][:]
    assert np.array_equal(np.nan_to_num(axes.images[0].get_array().filled(0)), histograms.T)
    assert [label.get_text() for label in axes.get_yticklabels()] == list("0123456789")


def test_timeline_has_every_client_and_phase_of_a_round(paths):
    path = next(path for path in paths if path.stem == "genfl_seed1")
    file = h5py.File(path)
    for wanted, round in ((1, 1), (None, 2)):
        found, shown = spans(path, wanted)
        assert shown == round
        own = file["clients/round"][:] == round
        starts, seconds = file["clients/start_seconds"][:][own], file["clients/seconds"][:][own]
        trained = {span.client: span for span in found if span.phase == "train"}
        assert sorted(trained) == sorted(file["clients/client"][:][own])
        for client, start, lasted, rank in zip(
            file["clients/client"][:][own], starts, seconds, file["clients/rank"][:][own]
        ):
            assert (trained[client].rank, trained[client].start) == (rank, start) and trained[
                client
            ].end == pytest.approx(start + lasted)
        for phase in ("generate", "augment", "reduce", "broadcast", "evaluate"):
            [span] = [span for span in found if (span.rank, span.phase) == (0, phase)]
            assert span.end - span.start == pytest.approx(file[f"rounds/{phase}_seconds"][round - 1])
        assert max(span.end for span in found) == pytest.approx(file["rounds/round_seconds"][round - 1])
        assert [span.start for span in found if span.phase == "write"] == [0.0] * (round > 1), (
            "what the round before came to"
        )
        served = {span.phase: span for span in found if span.rank == 0}
        for before, after in (("reduce", "aggregate"), ("aggregate", "broadcast"), ("broadcast", "evaluate")):
            assert served[before].end == pytest.approx(served[after].start), "no gap"
        assert max(starts + seconds) <= next(span.start for span in found if span.phase == "reduce")
        bars = timeline(path, wanted).axes[0].patches
        assert sorted((bar.get_x(), bar.get_width()) for bar in bars) == pytest.approx(
            np.array(sorted((span.start, span.end - span.start) for span in found))
        )


def test_timeline_waits_for_the_slowest_rank(paths, tmp_path):
    """Two ranks of which the second has less to do."""
    path = tmp_path / "two.h5"
    path.write_bytes(paths[0].read_bytes())
    with h5py.File(path, "r+") as file:
        file["clients/rank"][:3], file["clients/start_seconds"][:3], file["clients/seconds"][:3] = (
            [0, 0, 1],
            [0, 1, 0],
            [1, 2, 1],
        )
        file["rounds/round_seconds"][0] = 4
        for name, values in {
            "row": [0, 1, 2],
            "round": [1, 1, 2],
            "rank": [0, 1, 0],
            "wait_seconds": [0, 2.5, 0],
            "generating_seconds": [0, 0, 0],
        }.items():
            file["ranks"][name].resize(3, axis=0)
            file["ranks"][name][:] = values
        with_new_checksums(file)
    found, _ = spans(path, 1)
    first, then = [(span.start, span.end) for span in found if (span.rank, span.phase) == (1, "wait")]
    assert first == (1, 3.5), "as it was measured"
    assert [then] == [(span.start, span.end) for span in found if span.phase == "aggregate"], (
        "rank 1 waits for rank 0"
    )
    assert not [span for span in found if (span.rank, span.phase) == (0, "wait")]
    with h5py.File(path, "r+") as file:  # with method=sent for the images, too
        for name, value in {"generate_start": 0.25, "generate": 0.5, "send": 0.25}.items():
            file[f"rounds/{name}_seconds"][0] = value
        with_new_checksums(file)
    assert [(span.start, span.end) for span in spans(path, 1)[0] if (span.rank, span.phase) == (1, "wait")][
        0
    ] == (0, 1)


def test_generated_images_beside_real_ones(paths):
    figure, [path] = figures.draw("images", paths)
    assert path.stem == "genfl_seed1", "the first run with images"
    generated, real = (axes.images[0].get_array() for axes in figure.axes)
    file = h5py.File(path)
    arrays = datasets.load(Data())
    for picture, images, labels in (
        (generated, file["generated/image"][:], file["generated/label"][:]),
        (real, arrays["test_images"], arrays["test_labels"]),
    ):
        first = images[labels == 3][0, 0]
        assert np.array_equal(picture[3 * 30 + 1 : 4 * 30 - 1, 1:29, 0], first)


def test_a_class_without_images_says_so():
    some, labels = np.full((3, 1, 28, 28), 200, np.uint8), np.array([0, 0, 2])
    figure = plotting.sheet({"generated": (some, labels), "real": (some, np.arange(3))}, ["a", "b", "c"], 2)
    generated, real = figure.axes
    [word] = generated.texts
    assert word.get_text() == "none" and word.get_position() == (30, 45) and not real.texts
    assert (generated.images[0].get_array()[30:60, :, 3] == 0).all(), "the ground shines through"


def test_without_the_data_set_generated_images_stand_alone(paths, monkeypatch):
    def missing(data):
        from genfl_mpi.util.errors import UserError

        raise UserError("it is not there")

    monkeypatch.setattr(datasets, "load", missing)
    [axes] = figures.images(paths[-1]).axes
    assert "not available" in axes.get_title()


def test_costs_are_means_over_rounds(paths):
    above, below = cost_figures.measured(paths).axes
    phases = [label.get_text().replace(" ", "_") for label in above.get_yticklabels()]
    assert phases == [one for one in cost_figures.PHASES if one in phases]
    assert phases and "unmask" not in phases  # no row of zeros
    for axes, names, unit in (
        (above, phases, "seconds"),
        (below, cost_figures.MESSAGES, "bytes"),
    ):
        bars = [bar.get_width() for bar in axes.patches]
        wanted = [
            column(paths, f"rounds/{name}_{unit}", method).mean()
            - (name == "generate") * column(paths, "rounds/bank_seconds", method).mean()
            for method in ("fedavg", "genfl")
            for name in names
        ]
        assert bars == pytest.approx(wanted)
    assert {to_hex(bar.get_facecolor()).upper() for bar in above.patches} == {
        plotting.COLOURS["FedAvg"],
        plotting.COLOURS["GenFL"],
    }


@pytest.mark.parametrize(
    ("figure", "ending", "head"),
    [
        ("accuracy", "png", b"\x89PNG"),
        ("timeline", "svg", b"<?xml"),
        ("classes", "pdf", b"%PDF"),
        ("images", "png", b"\x89PNG"),
        ("partition", "svg", b"<?xml"),
        ("costs", "pdf", b"%PDF"),
    ],
)
def test_the_command_writes_each_figure_twice_alike(folder, tmp_path, figure, ending, head, capsys):
    before = dict(matplotlib.rcParams)
    written = []
    for name in ("one", "two"):
        assert main(["plot", str(folder), "--figure", figure, "-o", str(tmp_path / f"{name}.{ending}")]) == 0
        written.append((tmp_path / f"{name}.{ending}").read_bytes())
    assert written[0].startswith(head) and written[0] == written[1]
    assert matplotlib.rcParams == before, "the user's own style stays"
    assert "figure in" in capsys.readouterr().out


def test_costs_in_a_world(folder, tmp_path, capsys):
    world = tmp_path / "small.yaml"
    world.write_text("{}")
    assert (
        main(
            [
                "plot",
                str(folder),
                "--figure",
                "costs",
                "--world",
                str(world),
                "-o",
                str(tmp_path / "world.png"),
            ]
        )
        == 0
    )
    assert (tmp_path / "world.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--figure", "timeline", "--round", "9"], "has no round 9; give one of 1 to 2"),
        (["--round", "1"], "needs --figure timeline"),
        (["--world", "city.yaml"], "needs --figure costs"),
        (["-o", "figure.xyz"], "choose a file name that ends in .png, .svg or .pdf"),
        (["-o", "no/such/folder.png"], "cannot be written"),
    ],
)
def test_wrong_wishes_are_one_line(folder, arguments, message, capsys):
    assert main(["plot", str(folder), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_run_without_images_has_no_sheet_of_them(paths, capsys):
    assert main(["plot", str(paths[0]), "--figure", "images"]) == 2
    assert "no generated images" in capsys.readouterr().err


@pytest.fixture
def equal_runs(paths, tmp_path):
    """FedAvg, and GenFL with FedAvg's accuracy."""
    copies = []
    for path in paths:
        copies.append(tmp_path / path.name)
        copies[-1].write_bytes(path.read_bytes())
        with h5py.File(copies[-1], "r+") as file:
            file["rounds/accuracy"][:] = h5py.File(path.with_stem(f"fedavg_{path.stem[-5:]}"))[
                "rounds/accuracy"
            ][:]
            with_new_checksums(file)
    return copies


def test_equal_curves_are_both_visible_and_named(equal_runs, paths):
    [axes] = curves.accuracy(equal_runs).axes
    assert "same curve: FedAvg and GenFL" in axes.get_title()
    covered, covering = (line.get_linewidth() for line in axes.lines)
    assert covered > covering == plotting.STYLE["lines.linewidth"]
    assert "same curve" not in curves.accuracy(paths).axes[0].get_title()


def world_costs(methods, worlds, seeds=2):
    """Draw made runs whose costs rise from 3 to 300, but AIGC-only's air traffic, which is 0."""
    reached, spent = np.linspace(0.1, 0.9, 10), np.geomspace(3, 300, 10)
    runs = [
        (
            method,
            "",
            world,
            reached * (0.9 + 0.01 * seed) + 0.01 * len(method),
            {"seconds": spent, "air": spent * (method != "AIGC-only")},
        )
        for seed in range(seeds)
        for method in methods
        for world in worlds
    ]
    return cost_figures.accuracy(runs, {"seconds": "s", "air": "B"})


@pytest.mark.parametrize("worlds", [["city"], ["city", "campus"], ["city", "campus", "rural"]])
def test_cost_panels_keep_their_height(worlds):
    figure = world_costs(["FedAvg", "GenFL", "AIGC-only"], worlds)
    figure.draw_without_rendering()
    for axes in figure.axes:
        box = axes.get_window_extent()
        assert box.height / figure.dpi > 0.7 and box.width / figure.dpi > 1, "inches"
        assert not axes.texts, "nothing covers the curves"
        assert {label.get_rotation() for label in axes.get_xticklabels(which="both")} == {0}
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert 2 <= len(labels) <= plotting.MAX_LOG_TICKS and {"10", "100"} <= set(labels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["FedAvg", "GenFL", "AIGC-only"]
    titles = [axes.get_title() for axes in figure.axes]
    assert sum("AIGC-only: 0 B" in title for title in titles) == len(worlds)
    assert len(worlds) == 1 or titles[: len(worlds)] == [f"world {world}" for world in worlds]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.02, 30, ["0.1", "1", "10"]),
        (250, 480, ["250", "310", "370", "430"]),
        (1e-7, 1e7, ["$10^{-7}$", "0.001", "10", "100,000"]),
        (40.11, 40.13, ["40.11", "40.13"]),
    ],
)
def test_logarithmic_axes_have_plain_horizontal_numbers(low, high, labels):
    figure, [[axes]] = plotting.column(1, 2)
    axes.set(xscale="log", xlim=(low, high))
    plotting.set_log_ticks(axes.xaxis)
    found = [label.get_text() for label in axes.get_xticklabels()]
    assert found == labels


def test_many_panels_stay_on_a_page(tmp_path):
    assert main([*FAST, "rounds=1", "sweep.training.lr=[0.01,0.02,0.03,0.05,0.1]", f"output={tmp_path}"]) == 0
    figure = curves.classes(sorted(tmp_path.glob("*.h5")))
    assert figure.get_figheight() <= plotting.MAX_HEIGHT
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 5
    for axes in maps:
        assert [tick for tick in axes.get_xticks() if 0.5 <= tick <= 1.5] == [1], "whole rounds"


def test_methods_have_one_order_everywhere(tiny, tmp_path, capsys):
    run = [one for one in tiny if not one.startswith("method")]
    assert main([*run, "rounds=1", "sweep.method=[aigc,genfl,fedavg]"]) == 0
    paths = sorted((tmp_path / "results").glob("*.h5"))
    expected = ["FedAvg", "GenFL", "AIGC-only"]
    assert [group.method for group in summary.groups(paths)[0]] == expected
    assert [line.split()[0] for line in summary.table(paths)][1:4] == expected
    assert curves.accuracy(paths).axes[0].get_legend_handles_labels()[1] == expected


def test_columns_align_with_and_without_a_deviation(monkeypatch):
    def group(method, finals):
        runs = [
            {
                "round": [1],
                "accuracy": [final],
                "round_seconds": [1.0],
                "evaluate_seconds": [0.1],
                "clients_aggregated": [1],
                "images": [0],
            }
            for final in finals
        ]
        runs = [{name: np.array(values) for name, values in run.items()} for run in runs]
        return summary.Group(method, "", "", [], runs)

    groups = [group("FedAvg", [0.1, 0.9]), group("GenFL", [0.5, 0.51]), group("AIGC-only", [0.255])]
    monkeypatch.setattr(summary, "groups", lambda paths: (groups, {}))
    head, *rows = [*summary.table([])][:4]
    assert len({len(line) for line in (head, *rows)}) == 1
    assert len({row.index(".") for row in rows}) == 1 and len({row.index("±") for row in rows[:2]}) == 1
    monkeypatch.setattr(summary, "groups", lambda paths: (groups[2:], {}))
    head, row = [*summary.table([])][:2]
    assert row.index("25.50") + 5 == head.index("(%)") + 3, "right-aligned under its heading"


def test_bands_stay_within_what_a_column_can_be():
    mean, deviation = np.array([50.0, 98.0]), np.array([60.0, 5.0])
    assert [edge.tolist() for edge in curves.band("accuracy", mean, deviation)] == [[0, 93], [100, 100]]
    low, high = curves.band("loss", np.array([0.5]), np.array([0.7]))
    assert (low, high) == (0, 1.2)


@pytest.mark.parametrize(
    ("last", "ticks"),
    [
        (1, [1]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (21, [1, 5, 10, 15, 21]),
        (25, [1, 5, 10, 15, 20, 25]),
        (100, [1, 20, 40, 60, 80, 100]),
    ],
)
def test_ticks_of_rounds_include_the_first_and_the_last(last, ticks):
    assert plotting.round_ticks(last) == ticks


def test_the_last_round_is_labelled(paths):
    assert curves.accuracy(paths).axes[0].get_xticks().tolist() == [1, 2]


def test_numbers_at_equal_distances_are_abbreviated():
    for numbers, text in (
        ([3], "round 3"),
        ([2, 4, 6], "rounds 2, 4, 6"),
        ([2, 4, 6, 24], "rounds 2, 4, 6, 24"),
        (range(2, 25, 2), "rounds 2, 4, ..., 24"),
        ([5, 10, 15, 20, 21], "rounds 5, 10, ..., 20, 21"),
    ):
        assert enumerated("round", numbers) == text


def test_own_images_have_the_name_of_their_folder():
    assert summary.data_name({"data.name": "folder", "data.root": "/data/shapes"}) == "shapes"
    assert summary.data_name({"data.name": "cifar10", "data.root": "/data"}) == "cifar10"


def test_colours_that_are_dim_on_a_dark_ground_are_lighter():
    with plotting.on_dark():
        assert plotting.tinted(plotting.COLOURS["FedAvg"], 0) != plotting.COLOURS["FedAvg"]
        assert plotting.tinted(plotting.COLOURS["GenFL"], 0) == plotting.COLOURS["GenFL"]
    assert plotting.tinted(plotting.COLOURS["FedAvg"], 0) == plotting.COLOURS["FedAvg"]
