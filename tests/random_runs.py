"""Run random configurations: mpirun -n RANKS python random_runs.py FOLDER HOW FIRST LAST.

Writes the outcome of each run to FOLDER/results.json. HOW: whole, extended after the first round, or forked
from it.
"""

import json
import random
import sys
from pathlib import Path

from genfl_mpi.cli import main
from genfl_mpi.federation.policies.kappa import KAPPA
from genfl_mpi.federation.policies.rho import RHO
from genfl_mpi.federation.policies.selection import SELECTION
from genfl_mpi.mpi import collectives
from genfl_mpi.results import reader

QUICK = [
    "runtime.threads=1",
    "training.epochs=1",
    "training.lr=0.01",
    "augmented.epochs=1",
    "augmented.lr=0.01",
    "algorithm.server_lr=0.1",
    "generation.steps=2",
    "generation.per_round=2",
    "generation.cap=9",
    "hindsight.points=3",
    "probes.clients=3",
    "probes.epochs=1",
]
WORLDS = [
    "{}",
    "{deadline_s: 5, channel: {allocation: least_energy}}",
    "{channel: {allocation: weighted}}",
    "{enforced: true, dropout: 0.4}",
    "{enforced: true, deadline_s: 0.5}",
    "{enforced: true, hardware: {battery_kj: [0.001, 0.01]}}",
]
USUAL = (
    3  # times as often as another value: a setting's first one, which is its default or goes with all others
)
SETTINGS = {
    "method": ["genfl", "fedavg", "aigc", "sent", "filled", "pool", "matched", "finetuned", "distilled"],
    "rounds": [2, 3, 4],
    "clients": [6, 3, 12],
    "cohort": [3, 1, 2],
    "selection.policy": ["random", *sorted(SELECTION)],
    "rho.policy": ["size", *sorted(RHO)],
    "data.name": ["synthetic", "mnist5k"],
    "generation.checkpoint": ["digits"],
    "generation.prompts": ["mnist"],
    "data.samples": [500],
    "data.size": [8, 16],
    "data.public_pool": [100],
    "data.shared": [0, 20],
    "partition.scheme": ["dirichlet", "dirichlet_client", "iid", "shards", "classes"],
    "partition.alpha": [0.1, 10],
    "partition.min_samples": [1],
    "misbehaving_clients.share": [0, 0.4],
    "misbehaving_clients.kind": [
        "noisy",
        "blurred",
        "mislabelled",
        "free_rider",
        "disguised",
        "overclaiming",
    ],
    "training.dtype": ["float32", "bfloat16"],
    "training.schedule": ["constant", "exponential", "step", "cosine"],
    "training.crop": [0, 2],
    "training.clients_per_batch": [1, 2],
    "algorithm.name": [
        "fedavg",
        "fedprox",
        "fednova",
        "fedavgm",
        "fedadam",
        "fedyogi",
        "scaffold",
        "moon",
        "fedgen",
        "fedftg",
    ],
    "algorithm.server_steps": [1],
    "distillation.batches": [3],
    "calibration.every": ["null", 2],
    "label_sharing.payload": ["histogram", "presence"],
    "label_sharing.epsilon": ["null", 1],
    "label_sharing.refusal_rate": [0, 0.5],
    "generation.plan": ["equal", "inverse_frequency", "deficit", "cohort_deficit"],
    "generation.count": ["class", "total"],
    "generation.batch_size": [50, 3],
    "generation.min_fidelity": [0, 0.3],
    "client_generation.labels": ["rare", "missing"],
    "kappa.policy": ["fixed", *sorted(KAPPA)],
    "validation.source": ["pool", "clients", "generated"],
    "incentive.base": ["null", 1],
    "incentive.labels": ["null", 5],
    "world": WORLDS,
    "hindsight.every": ["null", 1],
    "probes.every": ["null", 2],
    "audit": ["false", "true"],
    "evaluation.batch_size": [100, 7],
    "generation.ranks": ["all", "server", 2],
    "transforms": ["[]", "[clip]", "[qsgd]", "[top_k]"],
    "attack.share": [0, 0, 0.5],
    "attack.kind": ["sign_flip", "label_flip", "gaussian", "alie", "inner_product", "backdoor"],
    "attack.trigger": [2],
    "defence.name": [*["none"] * 12, "median", "trimmed_mean", "centred_clipping", "geometric_median"],
    "personal.method": [*["none"] * 4, "global", "finetune", "fedper", "fedrep", "ditto"],
    "personal.every": [1],
    "privacy": [
        *["{}"] * 16,
        "{secure_aggregation: true}",
        "{clip: 1, noise_multiplier: 0.5, delta: 1.0e-3}",
        "{secure_aggregation: true, clip: 1, noise_multiplier: 9, delta: 1.0e-3, noise: distributed}",
    ],
    "model.trained": ["all", "head", "lora"],
    "faults.nonfinite": ["stop", "drop"],
}


def drawn(seed):
    """Return the settings of a random configuration; some combine incompatible parts and are refused."""
    rng = random.Random(seed)
    return [
        *QUICK,
        f"seed={seed}",
        *(f"{key}={rng.choice([values[0]] * USUAL + values)}" for key, values in SETTINGS.items()),
    ]


def run(settings, how, folder):
    """Exit status, and of the results the digests."""
    settings = [*settings, f"generation.bank={folder}/bank"]
    if how == "forked":
        if status := main([*settings, "checkpoint.keep=1", f"output={folder}/origin"]):
            return status, []
        collectives.world().Barrier()
        [origin] = Path(folder, "origin").glob("*.h5")
        status = main(["fork", str(origin), "--at", "1", f"output={folder}"])
    else:
        if how == "extended" and (status := main([*settings, "rounds=1", f"output={folder}"])):
            return status, []
        status = main([*settings, f"output={folder}"])
    return status, [reader.digests(path) for path in folder.glob("*.h5")]


if __name__ == "__main__":
    folder, how, first, last = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
    came = {seed: run(drawn(seed), how, folder / str(seed)) for seed in range(first, last + 1)}
    if collectives.world().rank == 0:
        (folder / "results.json").write_text(json.dumps(came))
