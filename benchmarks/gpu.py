"""Measure genfl_mpi on a GPU: everything that its pages say about GPUs, in one command of ten minutes.

    python benchmarks/gpu.py [--parts device,matrix,...] [--output results/gpu.json] [--toy]

Needs no network. Each part is a process of its own with a time budget, so that one failure, crash or
overrun does not lose the others: it is printed and recorded, and the exit status is 1. The parts run in
order of importance, until --limit. Rows are printed when they are measured; tables and the JSON file follow
after each part. --toy runs the same code at toy size, also on a CPU: do this before using a GPU.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch


class Part(NamedTuple):
    """module: where its function is, a generator of rows that has the part's name; budget: seconds."""

    module: str
    budget: int
    about: str


# In order of importance. The budgets are upper limits; what a part does not need is left for the others.
PARTS = {
    "device": Part("gpu_runs", 25, "device, driver, versions"),
    "matrix": Part("gpu_training", 15, "rates of a large matrix product and of a copy"),
    "prediction": Part("gpu_prediction", 15, "the calculation on paper, which needs no GPU"),
    "reference": Part("gpu_training", 190, "R2 and R1: floor, genfl_mpi, pfl-research, Flower"),
    "digests": Part("gpu_runs", 60, "the same digests on 1, 2 and 4 ranks"),
    "graphs": Part("gpu_training", 30, "CUDA graphs: capture, and steps per second with and without"),
    "paper": Part("gpu_runs", 105, "the paper's round: ResNet-18, a generator of Stable Diffusion's size"),
    "generation": Part("gpu_generation", 75, "images per second by batch size, scheduler and size"),
    "batched": Part("gpu_training", 20, "clients trained together against one by one"),
    "memory": Part("gpu_runs", 35, "memory against the prediction of plan --gpus"),
}


TOY_LIMIT = 1800  # seconds for each part; a toy may run on a busy machine


def measure(name, setting, file):
    """Run a part in this process: append its rows to `file`, JSON lines. Return an exit status."""
    status = 0
    with open(file, "a") as rows:

        def write(row):
            print(f"{name}: {describe(row)}", flush=True)
            print(json.dumps(row), file=rows, flush=True)

        try:
            for row in getattr(import_module(PARTS[name].module), name)(setting):
                write(row)
                status = status or int("failed" in row)
        except Exception as error:
            traceback.print_exc()
            write({"failed": f"{type(error).__name__}: {error}"})
            status = 1
    return status


def part_command(name, options, folder, file):
    """The words that start this program to measure one part and append its rows to `file`."""
    command = [sys.executable, __file__, "--parts", name, "--rows", file, "--folder", folder]
    return [*command, "--device", options.device, "--peers", options.peers, *["--toy"] * options.toy]


def run_part(name, options, folder, limit):
    """Run a part in a process of its own; return its entry in the JSON file. limit: seconds."""
    file, start = folder / f"{name}.jsonl", time.monotonic()
    process = subprocess.Popen(part_command(name, options, folder, file), start_new_session=True)
    failed = []
    try:
        if status := process.wait(timeout=limit):
            failed = [] if status == 1 else [f"ended with status {status}"]
    except subprocess.TimeoutExpired:
        failed = [f"stopped after {limit:.0f} s"]
    finally:
        stop(process)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    failed += [row["failed"] for row in rows if "failed" in row]
    if not rows and not failed:
        failed = ["measured nothing"]
    return {"seconds": time.monotonic() - start, "limit": limit, "failed": failed, "rows": rows}


def stop(process):
    """End a part's process and those that it started."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def describe(row):
    return ", ".join(f"{name} {format_value(value)}" for name, value in row.items())


def format_value(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ")


def table(rows):
    """Return the lines of Markdown tables of rows, dicts whose keys are the columns.

    Rows with the same first column are in one table.
    """
    tables = {}
    for row in rows:
        tables.setdefault(next(iter(row)), []).append(row)
    return [line for part in tables.values() for line in ["", *_table(part)]]


def _table(rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[format_value(row[name]) if name in row else "" for name in columns] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:10} {part.about}" for name, part in PARTS.items()),
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="names of parts, separated by commas")
    parser.add_argument("--toy", action="store_true", help="run all code at toy size")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--limit", type=float, default=570, help="seconds for all parts, without --toy (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/gpu.json"), help="JSON file (default: %(default)s)"
    )
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path.home() / ".cache/genfl_mpi/peers",
        help="environment of pfl-research and Flower, as made by reference_jobs.py; they are skipped without",
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a part's process
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = options.parts.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"there is no part {min(unknown)}; parts are {', '.join(PARTS)}")
    if options.rows:
        from gpu_setting import Setting

        return measure(
            names[0], Setting(options.toy, options.device, options.folder, options.peers), options.rows
        )
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
        if options.device == "cpu" and not options.toy:
            parser.error("torch finds no GPU; add --toy for the same at toy size, or --device cpu")
    return run_parts(names, options)


def run_parts(names, options):
    """Run parts one after the other, print their tables, and write the JSON file after each."""
    start = time.monotonic()
    record = {
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "toy": options.toy,
        "device": options.device,
        "parts": {},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="gpu"))
    try:
        for name in names:
            left = options.limit - (time.monotonic() - start)
            limit = TOY_LIMIT if options.toy else min(PARTS[name].budget, left)
            if limit > 0:
                found = run_part(name, options, folder, limit)
            else:
                found = {"seconds": 0.0, "limit": 0.0, "failed": ["no time was left"], "rows": []}
            record["parts"][name] = found
            options.output.write_text(json.dumps(record, indent=1))
            print(f"\n{name}: {PARTS[name].about} ({found['seconds']:.0f} s)", flush=True)
            print("\n".join(table(found["rows"])), flush=True)
            for reason in found["failed"]:
                print(f"{name} failed: {reason}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    failed = [name for name, part in record["parts"].items() if part["failed"]]
    print(
        f"\n{time.monotonic() - start:.0f} s; failed: {', '.join(failed) or 'none'}; {options.output}",
        flush=True,
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
