"""Measure whole runs on a GPU: the machine, digests, the paper's round, memory; parts of gpu.py."""

import os
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
import reference_jobs
import torch
from gpu_setting import attempt, peak_memory, reset_peak
from gpu_training import product_rates

from genfl_mpi import Simulation
from genfl_mpi.config.loading import single
from genfl_mpi.generation import image_flops
from genfl_mpi.learning.flops import training_flops
from genfl_mpi.mpi import collectives
from genfl_mpi.preparation import gpu_memory
from genfl_mpi.results import environment, reader

PAPER = Path(__file__).parents[1] / "configs/cifar10.yaml"
PHASES = ("generate", "train", "augment", "wait", "reduce", "broadcast", "evaluate")
NVIDIA = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory"


def device(setting):
    """Yield a description of device, driver and versions."""
    yield {
        "cores": len(os.sched_getaffinity(0)),
        "processor": environment.processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **environment.versions(),
        "cuda": torch.version.cuda or "none",
        "cudnn": torch.backends.cudnn.version() or 0,
        "mpi": collectives.library(),
        "commit": environment.git_commit(),
    }
    if setting.kind == "cuda":
        yield describe_gpu()


def describe_gpu():
    """Name, driver and limits of the first GPU."""
    found = torch.cuda.get_device_properties(0)
    row = {
        "gpu": found.name,
        "multiprocessors": found.multi_processor_count,
        "memory_gb": found.total_memory / 1e9,
    }
    command = ["nvidia-smi", "--id=0", f"--query-gpu={NVIDIA}", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return row | {"nvidia_smi": f"failed: {error}"}
    return row | dict(zip(NVIDIA.split(","), output.strip().split(", ")))


def digests(setting):
    """Yield the digests of two runs of GenFL, CNN and ResNet-18, on 1, 2 and 4 ranks that share the GPU.

    Each number of ranks generates its images anew. Fails if digests differ.
    """
    first = {}
    for ranks in (1, 2, 4):
        folder = setting.folder / f"digests{ranks}"
        command = [
            *reference_jobs.genfl_command(ranks),
            "method=genfl",
            "sweep.model.name=[cnn,resnet18]",
            f"rounds={setting.choose(3, 1)}",
            f"training.epochs={setting.choose(2, 1)}",
            f"cohort={setting.choose(5, 2)}",
            f"generation.steps={setting.choose(10, 1)}",
            f"generation.per_round={setting.choose(5, 1)}",
            f"runtime.device={setting.kind}",
            "runtime.threads=1",
            f"output={folder}",
            f"generation.bank={folder}/bank",
        ]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            yield {"ranks": ranks, "failed": "\n".join((done.stdout + done.stderr).splitlines()[-5:])}
            continue
        for file in sorted(folder.glob("*.h5")):
            weights, results, _ = reader.digests(file)
            equal = first.setdefault(file.stem, (weights, results)) == (weights, results)
            row = {"run": file.stem, "ranks": ranks, "weights": weights[:12], "results": results[:12]}
            row |= {"equal": equal, "seconds_of_sweep": seconds}
            yield (
                row
                if equal
                else row | {"failed": "the digests differ from those on the first number of ranks"}
            )


def paper_overrides(setting):
    """The settings of the paper's round; with synthetic images of the same shape unless GENFL_DATA is set."""
    folder = setting.folder
    root = None if setting.toy else os.environ.get("GENFL_DATA")
    samples = setting.choose(50_000, 300)
    synthetic = ["data.name=synthetic", f"data.samples={samples}", "generation.prompts=mnist"]
    return [
        "method=genfl",
        "rounds=2",
        *([f"data.root={root}"] if root else synthetic),
        f"generation.checkpoint={folder}/checkpoint",
        "generation.save_memory=[vae_slicing]",
        f"generation.bank={folder}/bank",
        f"output={folder}/paper",
        *setting.overrides,
        *setting.choose(
            [],
            [
                "clients=5",
                "cohort=2",
                "partition.alpha=1",
                "training.epochs=1",
                "augmented.epochs=1",
                "generation.per_round=1",
                "generation.steps=2",
                "generation.batch_size=10",
            ],
        ),
    ]


def paper(setting):
    """Yield the phases of two rounds of the paper's setting, with GenFL and a random checkpoint of its size.

    The first round loads the generator and warms up. ideal_s: seconds at the measured rates of large matrix
    products, of float16 for generation and of float32 (or TF32) for training. of_product_rate: its share of
    the round without evaluation.
    """
    from gpu_generation import make_checkpoint

    setting.set_up()  # before the first matrix product: then cuBLAS reads its variables
    make_checkpoint(setting)
    config = single(PAPER, paper_overrides(setting))
    training_rate, image_rate = (
        1e12 * max(product_rates(setting, name))
        for name in (("float32", "tf32")[config.runtime.tf32], "float16")
    )
    reset_peak(setting.device)
    simulation = Simulation(config, comm=collectives.single())
    sample = training_flops(simulation.model.module, simulation.about.shape)
    image = image_flops.count_configured(simulation.config.generation).image
    for record in simulation:
        columns, trained = record.columns, record.clients["samples"] * record.clients["epochs"]
        images = sum(len(made.batch) for made in record.generated)
        augmented = columns["images_used"] * config.augmented.epochs
        training = sample * float(trained.sum() + augmented)
        seconds = float(columns["round_seconds"] - columns["evaluate_seconds"])
        ideal = image * images / image_rate + training / training_rate
        yield {
            "round": record.round,
            "images": images,
            "samples_trained": int(trained.sum()),
            "samples_augmented": int(augmented),
            "tflop_generation": 1e-12 * image * images,
            "tflop_training": 1e-12 * training,
            "round_s": seconds,
            **{f"{phase}_s": float(columns[f"{phase}_seconds"]) for phase in PHASES},
            "ideal_s": ideal,
            "of_product_rate": ideal / seconds,
        }
    yield {"what": "memory", **_compare_memory(setting, config, simulation.data)}
    simulation.close()


def memory(setting):
    """Yield the peak of memory in two rounds, and the prediction of `plan --gpus`.

    plan's sum includes the context, which torch does not allocate: compare plan_torch_mb with allocated_mb
    and reserved_mb, and plan_mb with used_mb.
    """
    r2, r1 = setting.choose(("R2", "R1"), ("trial", "trial"))
    cases = {
        r2: [],
        f"{r2}, SCAFFOLD": ["algorithm.name=scaffold"],
        f"{r2}, momentum": ["training.momentum=0.9"],
        f"{r2}, clients together": [f"training.clients_per_batch={setting.choose(10, 2)}"],
        f"{r1}, bfloat16": ["training.dtype=bfloat16"],
        r1: [],
    }
    for name, more in cases.items():
        overrides = [*reference_jobs.overrides(name.partition(",")[0], 2), *setting.overrides, *more]
        config = single(None, [*overrides, f"output={setting.folder}/memory"])
        yield attempt({"run": name}, lambda: _run_for_memory(setting, config))


def _run_for_memory(setting, config):
    reset_peak(setting.device)
    simulation = Simulation(config, comm=collectives.single())
    for _ in simulation:
        pass
    figures = _compare_memory(setting, config, simulation.data)
    simulation.close()
    return figures


def _compare_memory(setting, config, arrays):
    """Return predicted and measured MB of a run on one rank."""
    measured = peak_memory(setting.device)
    predicted = {
        name: size / 1e6 for name, size in gpu_memory.rank_bytes(config, arrays, serves=True).items()
    }
    whole = float(np.sum(list(predicted.values())))
    inside = whole - predicted["context"]
    return {
        "plan_mb": whole,
        "plan_torch_mb": inside,
        **measured,
        "allocated_of_plan": measured["allocated_mb"] / inside,
        **{f"plan_{name}_mb": size for name, size in predicted.items() if size},
    }
