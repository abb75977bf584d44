"""Compare what clients claim to contribute with what their models show: the `audit` command.

A step of SGD on the cross-entropy of a softmax moves the bias of class c in the last layer by lr (y_c - p_c),
the share of the label in the batch minus the model's mean probability of it. So in any local training,
whatever the model,

    the changes of the biases add up to 0;
    the bias of a label that the client does not hold falls;
    a bias that rises belongs to a label that the client holds

(the label's sign in the last layer's gradient, Zhao et al. 2020, Wainakh et al. 2022).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from genfl_mpi.config.loading import validate
from genfl_mpi.data.corruption import draw_misbehaving
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import WIDTH, counted

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config

MAX_NAMED = 40  # failing clients that are listed
FALL_PROBABILITY = 0.6  # upper bound: the bias of a label that a client holds falls in a round
MIN_UNSEEN_BOUND = 0.4


class Evidence(NamedTuple):
    """What the audit found about each client that was aggregated at least once.

    client: int (n,). rounds: int (n,), how often it was aggregated. Else float64 (n,): length: norm of its
    change over the largest norm of the cohort, minimum over rounds. balance: |sum of the changes of its
    biases| over the sum of their absolute values, mean over rounds. unclaimed: share of all rises of its
    biases that belongs to labels it did not claim. unseen: share of the samples it claimed whose label's bias
    never rose. Both are NaN for a client that shared no labels. bound: on unseen, see `_unseen_bound`.
    """

    client: np.ndarray
    rounds: np.ndarray
    length: np.ndarray
    balance: np.ndarray
    unclaimed: np.ndarray
    unseen: np.ndarray
    bound: np.ndarray


# Tests that a client may fail: the `Evidence`, the condition, and what it implies.
RULES = (
    ("length", lambda found: found.length < 1e-3, "returned the global model unchanged"),
    ("balance", lambda found: found.balance > 1e-2, "returned an untrained model: its biases do not balance"),
    ("unclaimed", lambda found: found.unclaimed > 0.05, "trained on labels that it did not claim"),
    ("unseen", lambda found: found.unseen > found.bound, "did not train on much of what it claimed"),
)


def _unseen_bound(claims: np.ndarray, rounds: np.ndarray) -> np.ndarray:
    """Return which share of its samples may be unseen for each client, float64 (n,).

    claims: float64 (n, classes). rounds: int (n,), how often it was aggregated. The bias of a label that a
    client holds can fall in a round too, if the model expects more of the label than the batch contains.
    FALL_PROBABILITY bounds how often: after t rounds a label is unseen with probability FALL_PROBABILITY^t,
    plus three standard deviations, and at least MIN_UNSEEN_BOUND, for labels of which a client holds so few
    that the model expects more in every round.
    """
    share, chance = claims / np.maximum(claims.sum(1, keepdims=True), 1e-300), FALL_PROBABILITY**rounds
    return np.maximum(MIN_UNSEEN_BOUND, chance + 3 * np.sqrt(chance * (1 - chance) * (share**2).sum(1)))


def _collect(clients: dict[str, np.ndarray], observed: dict[str, np.ndarray], claims: np.ndarray) -> Evidence:
    """Return the `Evidence` in the columns of /clients and of /audit.

    claims: float64 (N, classes), samples of each label that the clients shared, or 0 and 1.
    """
    row = {
        place: number
        for number, place in enumerate(zip(clients["round"].tolist(), clients["client"].tolist()))
    }
    norms = clients["update_norm"][
        [row[place] for place in zip(observed["round"].tolist(), observed["client"].tolist())]
    ]
    largest = np.zeros(observed["round"].max() + 1)
    np.maximum.at(largest, observed["round"], norms)
    length = norms / np.maximum(largest[observed["round"]], 1e-300)
    change = observed["bias_change"]
    balance = np.abs(change.sum(1)) / np.maximum(np.abs(change).sum(1), 1e-300)
    audited, place, rounds = np.unique(observed["client"], return_inverse=True, return_counts=True)
    minimum, mean, rise = (
        np.full(len(audited), np.inf),
        np.zeros(len(audited)),
        np.zeros((len(audited), change.shape[1])),
    )
    np.minimum.at(minimum, place, length)
    np.add.at(mean, place, balance)
    np.add.at(rise, place, np.maximum(change, 0))
    claims = claims[audited]
    shares_labels = np.where(claims.any(1), 1.0, np.nan)
    return Evidence(
        audited,
        rounds,
        minimum,
        mean / rounds,
        shares_labels * (rise * (claims == 0)).sum(1) / np.maximum(rise.sum(1), 1e-300),
        shares_labels * (claims * (rise == 0)).sum(1) / np.maximum(claims.sum(1), 1e-300),
        _unseen_bound(claims, rounds),
    )


def failures(found: Evidence) -> dict[str, np.ndarray]:
    """Return which clients fail each of the RULES: {name: bool (n,)}."""
    return {name: fails(found) for name, fails, _ in RULES}


def read(path: str | Path) -> tuple[Config, Evidence]:
    """Return configuration and `Evidence` of a results file. Raises UserError."""
    with reader.open_results(path) as file, reader.report_damage(path):
        config: Config = validate(reader.read_config(file), str(path))
        observed, clients = (reader.read_columns(file, table) for table in ("audit", "clients"))
        shared = reader.read_array(file, "partition/shared_labels").astype(np.float64)
    if not len(observed["round"]):
        raise UserError(
            f"{path}: has no audit data; make the run with audit=true, and a method that trains clients"
        )
    if config.label_sharing.epsilon is not None:
        raise UserError(
            f"{path}: the clients shared labels under differential privacy, which the audit cannot "
            "distinguish from false claims; audit a run without label_sharing.epsilon"
        )
    shares_labels = shared.any(1, keepdims=True)
    # All clients train on what the public pool adds.
    return config, _collect(clients, observed, shared + shares_labels * config.data.shared / shared.shape[1])


def report_lines(path: str | Path) -> Iterator[str]:
    """Yield the audit of a results file as lines of at most WIDTH columns. Raises UserError."""
    config, found = read(path)
    fails = failures(found)
    failed = np.any(list(fails.values()), axis=0)
    yield (
        f"{len(found.client)} of {config.clients} clients audited, in {found.rounds.mean():.1f} rounds on "
        f"average; {failed.sum()} fail"
    )
    for n in np.flatnonzero(failed)[:MAX_NAMED]:
        reasons = "; ".join(
            f"{about} ({name} {getattr(found, name)[n]:.3g})" for name, _, about in RULES if fails[name][n]
        )
        yield from textwrap.wrap(
            f"client {found.client[n]}, in {counted(found.rounds[n], 'round')}: {reasons}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * 6,
        )
    if failed.sum() > MAX_NAMED:
        yield f"  and {failed.sum() - MAX_NAMED} more"
    yield f"{'evidence':<12}{'minimum':>10}{'median':>10}{'maximum':>10}{'failures':>12}"
    for name, _, _ in RULES:
        values = getattr(found, name)
        values = values[~np.isnan(values)] if not np.isnan(values).all() else np.full(1, np.nan)
        spread = "".join(f"{value:10.3g}" for value in (values.min(), np.median(values), values.max()))
        yield f"  {name:<10}{spread}{fails[name].sum():12d}"
    if config.misbehaving_clients.share:
        bad = draw_misbehaving(config.clients, config.misbehaving_clients, config.seed)[found.client]
        yield (
            f"{(failed & bad).sum()} of {bad.sum()} {config.misbehaving_clients.kind} clients fail, "
            f"and {(failed & ~bad).sum()} of {(~bad).sum()} others"
        )
