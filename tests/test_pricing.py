"""`price`: finished runs in simulated worlds, and what is counted for it."""

import csv
import re

import numpy as np
import pytest

from genfl_mpi.analysis import pricing
from genfl_mpi.cli import main
from genfl_mpi.config.sections.images import Generation
from genfl_mpi.config.sections.local_training import Model
from genfl_mpi.generation import image_flops, model_folder
from genfl_mpi.learning import models
from genfl_mpi.learning.flops import training_flops
from genfl_mpi.results import reader


@pytest.fixture(scope="module")
def results(tmp_path_factory, bank):
    from conftest import TINY

    folder = tmp_path_factory.mktemp("priced")
    assert (
        main(
            [
                *TINY,
                f"output={folder}/results",
                f"generation.bank={bank}",
                "sweep.method=[fedavg,genfl,aigc]",
            ][1:]
        )
        == 0
    )
    return folder / "results"


def test_flops_of_training_by_hand():
    # On 28x28 pixels, the CNN's convolutions take 9 * 16 * 28^2 and 144 * 32 * 14^2 products, the dense
    # layers 1568 * 64 and 64 * 10.
    products = 9 * 16 * 28**2 + 9 * 16 * 32 * 14**2 + 1568 * 64 + 64 * 10
    module = models.build(Model(name="cnn"), 10, (1, 28, 28), 1)
    # Forwards, and backwards to weights and to inputs, of which the first layer's are not asked for.
    assert training_flops(module, (1, 28, 28)) == 2 * (3 * products - 9 * 16 * 28**2)
    # ResNet-18 makes 37 and 555 million products an image of 32x32.
    for stem, millions in (("imagenet", 37), ("cifar", 555)):
        found = training_flops(
            models.build(Model(name="resnet18", stem=stem), 10, (3, 32, 32), 1), (3, 32, 32)
        )
        assert found / 6e6 == pytest.approx(millions, rel=0.03)


def test_flops_of_stable_diffusion():
    found = image_flops.count_stable_diffusion(Generation())
    assert (
        found.weights == 859_520_964 + 83_653_863 + 123_060_480
    )  # as published: UNet, autoencoder, text encoder
    # A step takes 0.80 TFLOP per prompt. Of these, self-attention on 4096 pixels and 320 channels takes
    # 2 * 2 * 4096^2 * 320.
    assert found.denoising == pytest.approx(20 * 2 * 0.80e12, rel=0.01)
    assert image_flops.count_stable_diffusion(Generation(guidance=1, steps=10)).denoising == pytest.approx(
        found.denoising / 4
    )
    assert (
        image_flops.count_stable_diffusion(Generation(size=256)).image < found.image / 4
    )  # attention is quadratic


def test_flops_of_a_pipeline():
    folder = model_folder.locate("digits")
    found = image_flops.count_pipeline(folder, Generation())
    assert (
        1.3e6 < found.weights < 1.4e6
        and found.denoising == 2 * image_flops.count_pipeline(folder, Generation(steps=10)).denoising
    )
    # The pipeline's own components, with their weights, have as many.
    from genfl_mpi.generation.pipeline import read

    parts = read(folder)
    assert found.weights == sum(
        p.numel() for part in (parts.unet, parts.vae, parts.text_encoder) for p in part.parameters()
    )


def test_price_in_three_worlds(results, tmp_path, capsys):
    before = {path: path.read_bytes() for path in results.glob("*.h5")}
    files = []
    for name, text in (
        ("near", "channel: {radius_m: 20}"),
        ("far", "channel: {radius_m: 3000}"),
        ("plain", ""),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
        files += ["--world", str(tmp_path / f"{name}.yaml")]
    capsys.readouterr()
    assert (
        main(
            [
                "price",
                str(results),
                *files,
                "-o",
                str(tmp_path / "price.png"),
                "--csv",
                str(tmp_path / "all.csv"),
                "--placements",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert max(map(len, said.replace(str(tmp_path), "").splitlines())) <= 80
    rows, run = {}, None
    head, body = said.split("\naccuracy against")[0].split("\n\n")
    assert "world near: cell of 20 m radius, 20 MHz shared by a cohort" in head
    units = re.findall(r"\((\w*)\)", body.splitlines()[1])
    assert units == ["s", "J", "J", "MB", "kB"]
    for line in body.splitlines()[2:]:
        if not line.startswith(" "):
            run = line
        else:
            world, *numbers = line.split()
            rows[run, world] = [float(number) for number in numbers]
    seconds = {key: row[2] for key, row in rows.items()}
    assert (
        len(rows) == 9
        and seconds["fedavg_seed1", "near"]
        < seconds["fedavg_seed1", "plain"]
        < seconds["fedavg_seed1", "far"]
    )
    assert (
        rows["aigc_seed1", "near"][3] == 0
        and rows["genfl_seed1", "near"][3] == rows["fedavg_seed1", "near"][3]
    )
    assert rows["genfl_seed1", "near"][4] > rows["fedavg_seed1", "near"][4]  # the server's GPU works
    assert said.count("placements of image generation on genfl_seed1") == 3 and "equal at (B/image)" in said
    for picture in ("price.png", "price_placements.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "all.csv") as file:
        lines = list(csv.DictReader(file))
    entities = {
        line["entity"]
        for line in lines
        if line["run"] == "genfl_seed1" and line["world"] == "far" and line["round"] == "2"
    }
    with reader.open_results(results / "genfl_seed1.h5") as file:
        trained = file["clients/client"][:][file["clients/round"][:] == 2]
    assert entities == {"server", "helper", *(f"client {client}" for client in trained)}
    total = sum(
        float(line["joules"])
        for line in lines
        if line["run"] == "genfl_seed1" and line["world"] == "far" and line["entity"].startswith("client")
    )
    assert total == pytest.approx(rows["genfl_seed1", "far"][3], rel=1e-3)
    assert all(path.read_bytes() == content for path, content in before.items()), "a results file was changed"


def test_price_as_if_with_the_papers_model_and_generator(results, tmp_path, capsys):
    capsys.readouterr()
    as_if = [
        "model.name=resnet18",
        "generation.checkpoint=stable-diffusion-v1-5/stable-diffusion-v1-5",
        "generation.steps=20",
    ]
    assert (
        main(
            [
                "price",
                str(results / "genfl_seed1.h5"),
                "--placements",
                *as_if,
                "-o",
                str(tmp_path / "price.pdf"),
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert max(map(len, said.replace(str(tmp_path), "").splitlines())) <= 80
    said = " ".join(said.split())
    assert (
        "20 images of 34.7 TFLOP" in said
        and "a model of 44.7 MB" in said
        and "a generator of 2.13e+03 MB" in said
    )


def test_price_says_when_a_target_is_reached(results, tmp_path, capsys):
    capsys.readouterr()
    with reader.open_results(results / "fedavg_seed1.h5") as file:
        reached = file["rounds/accuracy"][0]
    arguments = ["price", str(results / "fedavg_seed1.h5"), "-o", str(tmp_path / "price.png"), "--target"]
    assert main([*arguments, str(reached)]) == 0 and "  default           1 " in capsys.readouterr().out
    for target in ("5", "0", "-0.1", "nan"):
        assert main([*arguments, target]) == 2
        assert (
            f"--target {target}: the target is a test accuracy as a share in (0, 1]"
            in capsys.readouterr().err
        )
    assert main([*arguments, "1.0"]) == 0 and "never reaches 100 %" in capsys.readouterr().out


BAD = {
    "negative power": (["--world", "w.yaml"], "hardware: {receive_watts: -1}", "hardware.receive_watts= "),
    "no such world": (["--world", "none.yaml"], "", "none.yaml: cannot be read"),
    "too few clients": (["--world", "w.yaml"], "clients: 5", "the world has 5 clients, but the run has 6"),
    "a deadline": (
        ["--world", "w.yaml"],
        "{deadline_s: 0.001, channel: {allocation: least_energy}}",
        "deadline_s=0.001 cannot be met",
    ),
    "another setting": (["rounds=3"], "", "rounds=3: cannot be changed when a run is priced"),
    "a misspelt setting": (["model.nam=cnn"], "", "did you mean model.name?"),
    "placements of nothing": (
        ["--placements"],
        "",
        "--placements needs a run with clients and generated images",
    ),
    "a figure": (["-o", "price.xyz"], "", "the figure cannot be written"),
    "a table": (["--csv", "/nowhere/all.csv"], "", "/nowhere/all.csv: cannot be written"),
}


@pytest.mark.parametrize(("arguments", "world", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_status_2(
    arguments, world, message, results, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.yaml").write_text(world)
    capsys.readouterr()
    assert main(["price", str(results / "fedavg_seed1.h5"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("genfl_mpi: ") and said.count("\n") == 1


def test_a_run_on_which_a_world_acted_is_priced_in_its_own(tmp_path, tiny, capsys):
    assert main([*tiny, "method=fedavg", "selection.policy=energy", "world={channel: {radius_m: 50}}"]) == 0
    arguments = ["price", str(tmp_path / "results"), "-o", str(tmp_path / "price.png")]
    (tmp_path / "other.yaml").write_text("channel: {radius_m: 60}")
    capsys.readouterr()
    assert main(arguments) == 0 and "\n  own  " in capsys.readouterr().out
    assert main([*arguments, "--world", str(tmp_path / "other.yaml")]) == 2
    assert "a world acted on this run" in capsys.readouterr().err


def test_crossing_of_two_curves_by_hand():
    from genfl_mpi.analysis.pricing import FACTORS, crossing

    assert crossing(FACTORS, np.full(len(FACTORS), 7.0)) == pytest.approx(7.0)
    assert np.isnan(crossing(FACTORS, 2 * FACTORS)) and np.isnan(crossing(FACTORS, FACTORS))


def test_runs_that_differ_in_settings_are_told_apart(fast, tmp_path, capsys):
    for alpha in (0.5, 1.0):
        assert (
            main(
                [
                    *fast,
                    "sweep.seed=[1,2]",
                    "rounds=1",
                    f"partition.alpha={alpha}",
                    f"output={tmp_path}/{alpha}",
                ]
            )
            == 0
        )
    arguments = [f"{tmp_path}/{alpha}" for alpha in (0.5, 1.0)]
    capsys.readouterr()
    assert (
        main(["price", *arguments, "-o", str(tmp_path / "price.png"), "--csv", str(tmp_path / "all.csv")])
        == 0
    )
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fedavg")]
    assert rows == [f"fedavg_seed{seed}: α = {alpha:g}" for alpha in (0.5, 1) for seed in (1, 2)]
    with open(tmp_path / "all.csv") as file:
        assert {line["run"] for line in csv.DictReader(file)} == set(rows)
    runs = pricing.read_all(reader.find_results(arguments))
    axes = pricing.figure(pricing.in_worlds(runs, pricing.worlds_for(runs, []))).axes[0]
    assert axes.get_legend_handles_labels()[1] == ["FedAvg, α = 0.5", "FedAvg, α = 1"]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", "--", "--"]


def constant_images(batch, shape):
    return np.zeros((len(batch.label), *shape), dtype=np.uint8)


def test_all_but_the_images_of_a_users_generator_is_priced(tmp_path, tiny, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = f"generation.checkpoint={__name__}:constant_images"
    assert main([*tiny, "sweep.method=[fedavg,genfl]", "rounds=1", own]) == 0
    results = tmp_path / "results"
    (tmp_path / "measured.yaml").write_text("server: {image_seconds: 0.5}")
    capsys.readouterr()

    def price(*arguments):
        assert main(["price", str(results), *arguments]) == 0
        said = capsys.readouterr().out
        return said, [line.split() for line in said.splitlines() if line.startswith("  ") and "%" not in line]

    said, _ = price()
    assert (
        f"not counted: generating images, as the cost of {__name__}:constant_images is unknown; set server"
        in (" ".join(said.split()))
    )
    assert (results / "price.png").exists() and f"accuracy against costs: {results}/price.png" in said
    assert [path.name for path in tmp_path.glob("*.png")] == []  # the current folder
    said, rows = price("--world", "measured.yaml")
    fedavg, genfl = ([*map(float, row[1:])] for row in rows if row[0] == "measured")
    assert "not counted" not in said and genfl[4] - fedavg[4] > 0.5 * 400 / 1e3  # of the server, for an image
    assert "not counted" not in price("generation.checkpoint=digits")[0]
    assert main(["price", str(results), "--placements"]) == 2
    assert "the cost of" in capsys.readouterr().err
    assert main(["incentive", str(results / "genfl_seed1.h5")]) == 2
    assert "the cost of an image of" in capsys.readouterr().err


def test_a_misspelt_results_file_is_answered_with_the_closest(results, capsys):
    assert main(["show", str(results / "gnfl_seed1.h5")]) == 2
    assert f"no such results file; did you mean {results}/genfl_seed1.h5?" in capsys.readouterr().err


def test_commands_write_beside_the_results(results, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, name in (
        ("claims", "claims.md"),
        ("price", "price.png"),
        ("plot", "accuracy.png"),
        ("export", "rounds.csv"),
    ):
        (results / name).unlink(missing_ok=True)
        assert main([command, str(results)]) == 0
        assert (results / name).exists() and str(results / name) in capsys.readouterr().out.splitlines()[-1]
    assert main(["incentive", str(results / "genfl_seed1.h5")]) == 0
    said = capsys.readouterr().out
    assert f"figure in {results}/incentive.png" in said and said.startswith(
        "world default: cell of 500 m radius"
    )
    assert not list(tmp_path.iterdir())
