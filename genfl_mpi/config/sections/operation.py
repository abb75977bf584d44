"""Sections of how a run is executed: checkpoints, faults, threads and device."""

from typing import Literal

from pydantic import Field

from genfl_mpi.config.types import Count, Flag, Positive, Section, Threads


class Checkpoint(Section):
    """When to write checkpoints, from which interrupted runs continue and `fork` starts."""

    every_rounds: Count | None = Field(
        1, description="rounds between checkpoints; null: no checkpoints by rounds"
    )
    every_seconds: Positive | None = Field(
        None,
        description="also write a checkpoint at the end of a round if the last one is older than this, s",
    )
    keep: Count | Literal["auto"] | None = Field(
        "auto",
        description="keep the checkpoint of every keep-th round, for `fork`; auto: as many as fit into "
        "max_megabytes, at most 25, at equal distances; null: only the newest two",
    )
    max_megabytes: Positive = Field(
        100.0,
        description="keep=auto: limit of a run's kept checkpoints, with the clients' state files that "
        "they need, MB; the newest two come on top",
    )


class Faults(Section):
    """How to handle faults during training."""

    nonfinite: Literal["stop", "drop"] = Field(
        "stop",
        description="if a client's loss or weights are not finite; stop: end the run; drop: exclude the "
        "client from the round and divide its rho among the other clients; if all are dropped, the augmented "
        "model becomes the global model, and without one the weights stay unchanged; with attacks and with "
        "privacy the default is drop",
    )


class Runtime(Section):
    """Resources of the ranks."""

    threads: Threads | None = Field(
        None,
        description="threads per rank; null: the rank's share of the cores, regardless of OMP_NUM_THREADS. "
        "Fixed at a run's first start",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device, fixed at a run's first start; auto: a GPU if one is available"
    )
    ranks_per_run: Count | None = Field(
        None,
        description="ranks per run of a sweep: with enough ranks for several, runs are computed "
        "concurrently, each on a separate group of ranks; null: as many as a run keeps busy, "
        "one per client of the cohort and one for the server",
    )
    same_device: Flag = Field(
        False,
        description="refuse to continue a run on another model of GPU, or another instruction set of CPU, "
        "than it began with; false: go on with a warning",
    )
    deterministic: Flag = Field(
        True,
        description="on a GPU: refuse operations without a deterministic implementation; false: run them "
        "with a warning, and mark the results as not reproducible",
    )
    tf32: Flag = Field(
        False,
        description="on a GPU: compute float32 products in TensorFloat-32, which is faster and has a 10-bit "
        "mantissa",
    )
