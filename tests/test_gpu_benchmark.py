"""benchmarks/gpu.py: all of it at toy size on a CPU, and that one part's failure does not lose the others."""

import argparse
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from conftest import launcher

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# A number that at least one row of each part has.
MEASURED = {
    "device": "cores",
    "matrix": "tflops",
    "prediction": "predicted_graph_s",
    "reference": "images_per_s",
    "digests": "seconds_of_sweep",
    "graphs": "graphed_steps_per_s",
    "paper": "of_product_rate",
    "generation": "images_per_s",
    "batched": "ms_per_client",
    "memory": "plan_mb",
}


@pytest.fixture
def gpu(monkeypatch):
    """The command's module, with the folder of benchmarks importable."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


def in_parts(monkeypatch, gpu, programs, tmp_path, *more):
    """Run parts whose processes run other `programs`, {part: Python code}; return status and JSON."""

    def command(name, options, folder, file):
        return [sys.executable, "-c", programs[name], file]

    monkeypatch.setattr(gpu, "part_command", command)
    arguments = ["--parts", ",".join(programs), "--device", "cpu", f"--output={tmp_path}/gpu.json", *more]
    status = gpu.main(arguments)
    return status, json.loads((tmp_path / "gpu.json").read_text())["parts"]


WRITE = "import sys, os, time; print('{\"tflops\": 3.0}', file=open(sys.argv[1], 'a'), flush=True)"


def test_a_part_that_crashes_keeps_its_rows_and_the_other_parts(gpu, monkeypatch, tmp_path, capsys):
    programs = {"matrix": f"{WRITE}; os.abort()", "graphs": WRITE}
    status, parts = in_parts(monkeypatch, gpu, programs, tmp_path)
    assert status == 1 and parts["matrix"]["rows"] == parts["graphs"]["rows"] == [{"tflops": 3.0}]
    assert parts["matrix"]["failed"] == ["ended with status -6"] and not parts["graphs"]["failed"]
    assert "matrix failed: ended with status -6" in capsys.readouterr().out


def test_a_part_is_stopped_at_its_budget_with_all_that_it_started(gpu, monkeypatch, tmp_path):
    child = f"import subprocess; {WRITE}; subprocess.Popen(['sleep', '1000']).wait()"
    monkeypatch.setitem(gpu.PARTS, "matrix", gpu.PARTS["matrix"]._replace(budget=2))
    status, parts = in_parts(monkeypatch, gpu, {"matrix": child, "graphs": WRITE}, tmp_path)
    assert status == 1 and parts["matrix"]["failed"] == ["stopped after 2 s"]
    assert parts["matrix"]["rows"] and parts["graphs"]["rows"] and parts["matrix"]["seconds"] < 60


def test_parts_after_the_limit_are_reported_as_failed(gpu, monkeypatch, tmp_path):
    status, parts = in_parts(monkeypatch, gpu, {"matrix": WRITE, "graphs": WRITE}, tmp_path, "--limit=0")
    assert status == 1 and parts["graphs"]["failed"] == ["no time was left"]


def test_an_exception_is_a_row_of_its_part(gpu, monkeypatch, tmp_path):
    import gpu_training
    from gpu_setting import Setting

    def broken(setting):
        yield {"tflops": 1.0}
        raise RuntimeError("no kernel")

    monkeypatch.setattr(gpu_training, "matrix", broken)
    setting = Setting(True, "cpu", tmp_path, tmp_path)
    assert gpu.measure("matrix", setting, tmp_path / "rows") == 1
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert rows == [{"tflops": 1.0}, {"failed": "RuntimeError: no kernel"}]


def test_the_parts_fit_into_ten_minutes(gpu):
    assert sum(part.budget for part in gpu.PARTS.values()) <= 570
    assert gpu.PARTS.keys() == MEASURED.keys()


def test_without_a_gpu_the_full_size_is_refused(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "torch finds no GPU; add --toy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--parts", "matrix,speed"])
    assert "there is no part speed" in capsys.readouterr().err


def test_the_random_checkpoint_has_the_size_of_stable_diffusion(gpu):
    from gpu_generation import build_modules

    sizes = [sum(one.numel() for one in part.parameters()) for part in build_modules(False, "meta")]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]


def test_the_prediction_counts_hand_computed_flops(gpu):
    """R2's network: convolutions on 30x30 and 28x28 outputs, two dense layers; no gradient of the images."""
    from gpu_prediction import count_step

    first, second = 30 * 30 * 32 * 27, 28 * 28 * 64 * 288
    dense = 12544 * 128 + 128 * 10
    counts = count_step("R2")
    assert counts["flops"] == 10 * 2 * (2 * first + 3 * (second + dense))
    assert counts["bytes"] > 6 * 4 * 1_626_442 and 30 < counts["kernels"] < 60


@pytest.mark.parametrize("output", ["NVIDIA H100, 580.1, 81559 MiB, 700.00 W, 1980 MHz, 2619 MHz\n", None])
def test_the_gpu_is_described_with_and_without_nvidia_smi(gpu, monkeypatch, output):
    import gpu_runs

    found = argparse.Namespace(name="H100", multi_processor_count=132, total_memory=8e10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: found)

    def run(command, **options):
        if output is None:
            raise FileNotFoundError("nvidia-smi")
        return argparse.Namespace(stdout=output)

    monkeypatch.setattr(gpu_runs.subprocess, "run", run)
    row = gpu_runs.describe_gpu()
    assert row["memory_gb"] == 80 and row.get("driver_version") == (output and "580.1")
    assert ("nvidia_smi" in row) == (output is None)


@pytest.mark.slow
def test_a_toy_measures_every_part(gpu, tmp_path, monkeypatch):
    launcher()  # there is one
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("GENFL_DATA", raising=False)
    output = tmp_path / "folder/gpu.json"
    assert gpu.main(["--toy", "--device", "cpu", "--output", str(output), "--peers", str(tmp_path)]) == 0
    record = json.loads(output.read_text())
    assert record["toy"] and record["device"] == "cpu" and list(record["parts"]) == list(MEASURED)
    for name, column in MEASURED.items():
        part = record["parts"][name]
        values = [row[column] for row in part["rows"] if column in row]
        assert part["failed"] == [] and values and all(math.isfinite(value) for value in values), name
    runs = record["parts"]["digests"]["rows"]
    assert len(runs) == 6 and {row["ranks"] for row in runs} == {1, 2, 4}
    assert all(row["equal"] for row in runs)
