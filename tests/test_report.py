"""The report: one HTML file that needs nothing beside it."""

import base64
import gzip
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
from conftest import small_sweep
from PIL import Image
from plotly.offline import get_plotlyjs

from genfl_mpi.analysis import report as reports
from genfl_mpi.cli import main
from genfl_mpi.results import reader

VOID = {"meta", "source", "img", "br"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bank):
    return small_sweep(tmp_path_factory.mktemp("<runs> & co"), bank)


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    """As of runs that the paper's claims are about."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "PAPER_DATA", {"mnist5k"})
        assert main(["report", str(folder), "-o", str(path)]) == 0
    return path


class Page(HTMLParser):
    """Checks that tags are closed in their order; collects attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text, self.ids = [], [], [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_it_is_well_formed_and_needs_no_network(report):
    page = Page(report.read_text())
    assert len(page.ids) == len(set(page.ids))
    links = [value for name, value in page.attributes if name in ("src", "srcset", "href", "data", "action")]
    assert len(links) == 2 * 7 and all(link.startswith("data:image/svg+xml;base64,") for link in links), (
        "every figure, on light and on dark"
    )
    for link in links:
        ElementTree.fromstring(base64.b64decode(link.partition(",")[2]))
    outside = re.sub(r"data:image[^\"]*|(?<=id=\"plotly\">)[^<]*", "", report.read_text())
    assert "http" not in outside and "url(" not in outside and "@import" not in outside
    assert outside.count("<script") == outside.count("<script>") + outside.count('<script type="application/')


def test_charts_have_the_values_of_the_files(folder, report):
    text = report.read_text()
    library = re.search(r'id="plotly">([^<]*)<', text)[1]
    assert gzip.decompress(base64.b64decode(library)).decode() == get_plotlyjs()
    described = re.findall(r'<script type="application/json">(.*?)</script>', text)
    accuracy, loss, classes, costs = map(json.loads, described)
    [chart] = accuracy
    curves = {path.stem: 100 * h5py.File(path)["rounds/accuracy"][:] for path in sorted(folder.glob("*.h5"))}
    drawn = {trace["name"]: trace for trace in chart["data"] if "name" in trace}
    for run, values in curves.items():
        assert drawn[run]["y"] == pytest.approx(values) and drawn[run]["visible"] is False
    both = np.array([curves["genfl_seed1"], curves["genfl_seed2"]])
    assert drawn["GenFL"]["y"] == pytest.approx(both.mean(0))
    assert drawn["GenFL"]["customdata"] == pytest.approx(both.std(0, ddof=1), rel=1e-5)  # six digits
    for visible in chart["views"].values():
        assert len(visible) == len(chart["data"])
    assert [one["title"] for one in classes] == ["FedAvg", "GenFL"] and len(costs) == 2
    assert loss[0]["layout"]["yaxis"]["title"]["text"] == "test loss (nat)"


def test_a_sweep_leads_with_its_comparison(folder, report):
    said = " ".join(" ".join(Page(report.read_text()).text).split())
    finals = {path.stem: 100 * h5py.File(path)["rounds/accuracy"][-1] for path in folder.glob("*.h5")}
    gain = np.mean([finals[f"genfl_seed{seed}"] - finals[f"fedavg_seed{seed}"] for seed in (1, 2)])
    start, comparison = said.index("Test accuracy by method"), said.index(f"{gain:+.2f} [")
    assert start < comparison < said.index("Test accuracy over rounds")
    assert "Fewer than 6 pairs of seeds decide nothing." in said


def test_cells_have_a_label_for_narrow_screens(report):
    tables = re.findall(
        r"<thead><tr>(.*?)</tr></thead>\n<tbody>\n(.*?)</tbody>", report.read_text(), re.DOTALL
    )
    for head, body in tables:
        if "claim" not in head:
            columns = re.findall(r"<th[^>]*>([^<]*)</th>", head)[1:]
            labels = set(re.findall(r'data-label="([^"]*)"', body))
            assert {name for name in columns if name} - labels <= {"method"}, head


def test_it_says_what_the_files_say(folder, report):
    said = " ".join(" ".join(Page(report.read_text()).text).split())
    finals = {
        method: [
            100 * h5py.File(folder / f"{method}_seed{seed}.h5")["rounds/accuracy"][-1] for seed in (1, 2)
        ]
        for method in ("fedavg", "genfl")
    }
    for values in finals.values():
        assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" in said
    for path in folder.glob("*.h5"):
        assert path.stem in said and reader.digests(path)[1][:16] in said
    with h5py.File(folder / "fedavg_seed1.h5") as file:
        assert (
            file["environment"].attrs["packages"] in said
            and " ".join(file["environment"].attrs["mpi"].split()) in said
        )
    assert "GenFL has the best accuracy in every setting" in said and "undecided" in said
    assert "generation.per_round" in said and "<runs> & co" in said.replace("co0", "co")


def test_the_papers_claims_are_shown_for_its_data_sets_alone(folder, report, tmp_path):
    assert main(["report", str(folder), "-o", str(tmp_path / "own.html")]) == 0
    assert "claims" in Page(report.read_text()).ids
    assert "claims" not in Page((tmp_path / "own.html").read_text()).ids


def test_it_begins_with_the_experiment(report):
    said = " ".join(" ".join(Page(report.read_text()).text).split())
    line = (
        "mnist5k: 6 clients, 3 in each round, Dirichlet(0.1); 2 rounds; FedAvg, GenFL; seeds 1, 2. Generative"
    )
    assert line in said


def test_the_same_runs_give_the_same_report(folder, report, tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "PAPER_DATA", {"mnist5k"})
    assert main(["report", str(folder), "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == report.read_bytes()


def test_of_one_run_without_images(folder, tmp_path):
    assert main(["report", str(folder / "fedavg_seed1.h5"), "-o", str(tmp_path / "one.html")]) == 0
    page = Page((tmp_path / "one.html").read_text())
    assert "claims" not in page.ids and "images" not in page.ids and "timeline" in page.ids
    assert "accuracy by" not in " ".join(page.text), "there is nothing to compare"
    said = " ".join(" ".join(page.text).split())
    assert "over seeds" not in said and "deviation" not in said and "±" not in said, "of one seed"


def test_runs_of_different_lengths_and_settings_can_be_told_apart(folder, report, tiny, tmp_path):
    longer = [*tiny, "method=fedavg", "training.momentum=0.5", "rounds=3", f"output={tmp_path}"]
    assert main(longer) == 0
    runs = [str(folder / "fedavg_seed1.h5"), str(tmp_path / "fedavg_seed1.h5")]
    assert main(["report", *runs, "-o", str(tmp_path / "two.html")]) == 0
    columns = [
        [text for name, text in Page(path.read_text()).attributes if name == "data-label"]
        for path in (tmp_path / "two.html", report)
    ]
    assert "rounds" in columns[0][:3] and "rounds" not in columns[1][:3]
    described = re.findall(
        r'<script type="application/json">(.*?)</script>', (tmp_path / "two.html").read_text()
    )
    bars = [trace for chart in json.loads(described[-1]) for trace in chart["data"]]
    assert [bar["marker"]["pattern"]["shape"] for bar in bars] == ["", "/", "", "/"]


def test_captions_say_what_is_drawn(report):
    said = " ".join(" ".join(Page(report.read_text()).text).split())
    assert "mean and standard deviation over seeds" in said and "Mean ± standard deviation over seeds" in said
    assert "Last round of genfl_seed1 on all ranks;" in said and "thin lines: runs" not in said


def test_only_what_was_decided_is_listed(report):
    text = report.read_text()
    listed = re.findall(r"<tr><td><code>([\w.]+)</code>", text)
    assert {"rounds", "clients", "training.epochs", "generation.steps"} <= set(listed)
    assert not {
        "augmented.lr",
        "augmented.epochs",
        "generation.seed",
        "generation.threads",
        "runtime.threads",
        "kappa.kappa1",
        "method",
    } & set(listed)


def test_claims_that_these_runs_do_not_touch_are_listed_as_skipped(report):
    said = " ".join(" ".join(Page(report.read_text()).text).split())
    assert (
        "needs runs of genfl and pool skipped" in said
        and "in part needs runs of genfl, fedavg and aigc undecided" in said
    )


def test_what_cannot_be_written_or_read(folder, tmp_path, capsys):
    for arguments, message in (
        ([str(folder), "-o", str(tmp_path / "no/report.html")], "cannot be written"),
        ([str(tmp_path)], "no results files"),
    ):
        assert main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
@pytest.mark.parametrize(
    ("width", "scheme", "ground"),
    [
        (1280, 1, (255, 255, 255)),
        pytest.param(1280, 0, (22, 24, 29), marks=pytest.mark.slow),
        pytest.param(500, 1, (255, 255, 255), marks=pytest.mark.slow),
        (500, 0, (22, 24, 29)),
    ],
)
def test_a_browser_shows_the_page_at_every_width_in_both_schemes(report, tmp_path, width, scheme, ground):
    """The ground has the scheme's colour, and the page has pictures on it at every width."""
    picture = tmp_path / "page.png"
    subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path}/profile",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={width},2400",
            f"--screenshot={picture}",
            report.as_uri(),
        ],
        capture_output=True,
        timeout=240,
        check=True,
    )
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape == (2400, width, 3) and tuple(pixels[2, 2]) == ground
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
    assert (pixels[:, -3:] == ground).all(), "nothing is cut off at the right"
