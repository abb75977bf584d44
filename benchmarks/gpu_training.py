"""Measure matrix products, SGD steps, batched clients and the reference jobs on a GPU: parts of gpu.py."""

import os
import statistics
import sys
import time
from pathlib import Path

import batched_clients
import reference_jobs
import torch
import torch.nn.functional as F
from floor import OPTIMIZERS, flat_step
from gpu_setting import attempt, set_tf32, spread, synchronize, time_calls

from genfl_mpi.config.sections.local_training import LocalTraining, Model
from genfl_mpi.learning import models
from genfl_mpi.learning.steps import Steps
from genfl_mpi.learning.weights import FlatModel
from jobs import FORMATS, JOBS, data, network

HERE = Path(__file__).parent
# dtype of the operands, and whether float32 products may be computed in TensorFloat-32
PRODUCTS = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
}
LIMIT = 60  # seconds after which a contestant of the reference jobs has failed
R2_ROUNDS = 1500  # of pfl-research's benchmark


def product_rates(setting, name):
    """Return TFLOP/s of a large product of random square matrices, one value per repeat."""
    (dtype, tf32), device = PRODUCTS[name], setting.device
    size = setting.choose(8192, 128)
    set_tf32(tf32)
    random = torch.Generator(device).manual_seed(0)
    one, other = (torch.randn(size, size, generator=random, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(one)
    seconds = time_calls(lambda: torch.mm(one, other, out=result), device, setting.choose(1.0, 0.01))
    return [2e-12 * size**3 / each for each in seconds]


def matrix(setting):
    """Yield the rates of a large matrix product in each number format, and of a copy in memory."""
    for name in PRODUCTS:
        yield {"what": f"product, {name}", **spread("tflops", product_rates(setting, name))}
    source = torch.randn(setting.choose(2**29, 2**16), device=setting.device)
    target = torch.empty_like(source)
    seconds = time_calls(lambda: target.copy_(source), setting.device, setting.choose(0.5, 0.01))
    yield {
        "what": "copy, read and written",
        **spread("gb_per_s", [2e-9 * source.nbytes / each for each in seconds]),
    }


def graphs(setting):
    """Yield steps per second with CUDA graphs and without, and what their capture costs.

    On a CPU there are no graphs, and both are eager steps.
    """
    jobs = setting.choose(
        [("pfl_cnn", (3, 32, 32), 10), ("resnet18", (3, 32, 32), 64), ("cnn", (1, 28, 28), 64)],
        [("cnn", (1, 8, 8), 4)],
    )
    for name, shape, batch in jobs:
        for number_format in ("float32", "tf32", "bfloat16"):
            row = {"network": name, "batch": batch, "format": number_format}
            yield attempt(row, lambda: _graph_figures(setting, name, shape, batch, number_format))


def _graph_figures(setting, name, shape, batch, number_format):
    device = setting.set_up(tf32=number_format == "tf32")
    model = FlatModel(models.build(Model(name=name), 10, shape, seed=1), device)
    dtype = "bfloat16" if number_format == "bfloat16" else "float32"
    settings, start = LocalTraining(batch_size=batch, dtype=dtype), model.weights.clone()
    random = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *shape, generator=random).to(device, memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=random).to(device)
    eager, graphed = Steps(model, settings), Steps(model, settings)
    eager.fixed = False
    per_second, seconds = {}, setting.choose(0.5, 0.02)
    for what, steps in (("eager", eager), ("graphed", graphed)):
        steps.begin(start, 1e-3)
        before = time.perf_counter()
        steps(images, labels)  # the graphed one captures
        synchronize(device)
        first = time.perf_counter() - before
        per_second[what] = [1 / each for each in time_calls(lambda: steps(images, labels), device, seconds)]
    return {
        "capture_s": first,
        "graphs": len(graphed.graphs),
        **spread("graphed_steps_per_s", per_second["graphed"]),
        **spread("eager_steps_per_s", per_second["eager"]),
    }


def batched(setting):
    """Yield milliseconds per client of clients trained together (training.clients_per_batch), and alone."""
    device = setting.set_up()
    together = setting.choose((1, 5, 10, 25, 50), (1, 2))
    for job in setting.choose(list(batched_clients.JOBS), ["cnn, 8x8"]):
        found = batched_clients.measure(job, device, setting.choose(3, 1), max(together), together)
        alone = statistics.median(found[1].milliseconds)
        for count, (milliseconds, difference) in found.items():
            row = spread("ms_per_client", milliseconds)
            faster = alone / row["ms_per_client"]
            yield {
                "job": job,
                "together": count,
                **row,
                "times_faster": faster,
                "largest_difference": difference,
            }


def floor_rounds(name, device, memory_format, optimizer, rounds, clients=None):
    """Return the seconds of each round of a bare PyTorch loop on resident tensors.

    The same work as floor.py's, on one device in one process; uses no layer or optimization of genfl_mpi. A
    further round warms up. clients: of a round, by default the job's cohort.
    """
    job = JOBS[name]
    module, of_client = network(job, memory_format, device), data(job, memory_format, device)
    if optimizer == "flat":
        prepare, step = flat_step(module, job.lr)
    else:
        sgd = torch.optim.SGD(module.parameters(), job.lr, **OPTIMIZERS[optimizer])
        prepare, step = sgd.zero_grad, sgd.step
    seconds = []
    for _ in range(rounds + 1):
        synchronize(device)
        start = time.perf_counter()
        for client in range(clients or job.cohort):
            images, labels = of_client(client)
            order = torch.randperm(job.samples, device=device)
            for batch in order.tensor_split(-(-job.samples // job.batch)):
                prepare()
                F.cross_entropy(module(images[batch]), labels[batch]).backward()
                step()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _find_floor(name, setting):
    """Return the bare loop's fastest (memory format, optimizer), from short rounds of each."""
    layouts = [(memory_format, optimizer) for memory_format in FORMATS for optimizer in OPTIMIZERS]
    few = max(1, JOBS[name].cohort // 5)
    return min(
        layouts, key=lambda layout: min(floor_rounds(name, setting.device, *layout, rounds=2, clients=few))
    )


def reference(setting):
    """Yield seconds per round of the floor, genfl_mpi, pfl-research and Flower on R2 and R1.

    First what every comparison needs, on both jobs, then further settings of genfl_mpi.
    """
    torch.set_num_threads(setting.choose(torch.get_num_threads(), 1))
    set_tf32(False)
    names = setting.choose(("R2", "R1"), ("trial",))
    layouts = {name: _find_floor(name, setting) for name in names}
    floors = {}
    for contestants in (_main_contestants, _further_contestants):
        for name in names:
            for contestant, run in contestants(name, setting, layouts[name]).items():
                row = {"job": name, "contestant": contestant}
                row = attempt(row, lambda: _figures(name, run, floors.get(name)))
                floors.setdefault(name, row.get("round_s"))
                yield row


def _figures(name, run, floor):
    """Run a contestant. floor: seconds of the floor's round, None if this is the floor, or if it failed."""
    seconds, job = run(), JOBS[name]
    if seconds is None:
        return {"skipped": "not installed for this Python, nor in the folder of --peers"}
    row = {"rounds": len(seconds), **spread("round_s", seconds)}
    if floor:
        row["of_floor"] = row["round_s"] / floor
    row["images_per_s"] = job.cohort * job.samples / row["round_s"]
    return row | ({f"{R2_ROUNDS}_rounds_s": R2_ROUNDS * row["round_s"]} if name == "R2" else {})


def _rounds(name, setting):
    return setting.choose({"R2": 10, "R1": 5}, {"trial": 1})[name]


def _time_floor(name, setting, layout, tf32):
    set_tf32(tf32)
    return floor_rounds(name, setting.device, *layout, rounds=_rounds(name, setting))


def _time_genfl(name, setting, ranks, *settings):
    rounds, settings = _rounds(name, setting), [*setting.overrides, *settings]
    return [figure["round"] for figure in reference_jobs.genfl(name, ranks, rounds, LIMIT, settings)]


def _time_peer(name, setting, memory_format, package, file, *options):
    """Run a peer; None if its package is not installed."""
    pythons = (setting.peers / "bin/python", Path(sys.executable))
    python = next((one for one in pythons if reference_jobs.has_packages(one, package, "torch")), None)
    if python is None:
        return None
    command = [python, HERE / "peers" / file, name, "--format", memory_format, "--device", setting.kind]
    command += ["--rounds", min(_rounds(name, setting), 3), *options]
    return [figure["round"] for figure in reference_jobs.told(command, LIMIT)]


def _main_contestants(name, setting, layout):
    """The functions that run a contestant and return the seconds of its rounds, None if not installed.

    layout: (memory format, optimizer) of the floor, which comes first.
    """
    memory_format, threads = layout[0], len(os.sched_getaffinity(0))
    flower = memory_format, "flwr", "flower.py", "--threads", threads
    pfl = memory_format, "pfl", "pfl_research.py", "--threads", threads
    return {
        f"floor, {', '.join(layout)}": lambda: _time_floor(name, setting, layout, tf32=False),
        "genfl_mpi": lambda: _time_genfl(name, setting, 1),
        "genfl_mpi, tf32": lambda: _time_genfl(name, setting, 1, "runtime.tf32=true"),
        "pfl-research": lambda: _time_peer(name, setting, *pfl),
        "Flower, 1 actor": lambda: _time_peer(name, setting, *flower),
    }


def _further_contestants(name, setting, layout):
    """Less important contestants, like `_main_contestants`."""
    cohort, cores = JOBS[name].cohort, len(os.sched_getaffinity(0))
    workers = min(4, cores)
    together = f"training.clients_per_batch={cohort}"
    actors = layout[0], "flwr", "flower.py", "--actors", workers, "--threads", cores // workers
    contestants = {
        f"genfl_mpi, {cohort} clients per batch": lambda: _time_genfl(name, setting, 1, together),
        f"floor, {', '.join(layout)}, tf32": lambda: _time_floor(name, setting, layout, tf32=True),
        "genfl_mpi, 2 ranks": lambda: _time_genfl(name, setting, 2),
        "genfl_mpi, bfloat16": lambda: _time_genfl(name, setting, 1, "training.dtype=bfloat16"),
        f"Flower, {workers} actors": lambda: _time_peer(name, setting, *actors),
    }
    if JOBS[name].network == "resnet18":  # BatchNorm cannot be batched over clients
        del contestants[f"genfl_mpi, {cohort} clients per batch"]
    return contestants
