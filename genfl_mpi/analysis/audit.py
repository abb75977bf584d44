"""What clients claim to contribute, against what their models show: the `audit` command.

A step of SGD on the cross-entropy of a softmax moves the bias of class c in the last layer by lr (y_c - p_c), the share of the
label in the batch less the model's mean probability of it. So in a local training, whatever the model,

    the changes of the biases add up to 0;
    the bias of a label that the client does not hold falls;
    a bias that rises is that of a label that it holds

(the label's sign in the last layer's gradient, Zhao et al. 2020, Wainakh et al. 2022).
"""

import textwrap
from typing import NamedTuple

import numpy as np

from genfl_mpi.config.loading import validate
from genfl_mpi.data.corruption import draw_misbehaving
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import WIDTH

MOST = 40  # clients that are named
FALLS, LEAST = 0.6, 0.4  # of `allowed`


class Evidence(NamedTuple):
    """Of each client that was heard, client: int (n,); rounds: int (n,), in how many; and float64 (n,):

    length: of its change, over the longest of the cohort, at the least. balance: |sum of the changes of its biases| over the sum
    of their sizes, mean over rounds. unclaimed: share of all rises of its biases that is not of labels that it claimed; unseen:
    share of the samples that it claimed whose label's bias never rose; NaN for who told nothing. allowed: of that, by `allowed`.
    """

    client: np.ndarray
    rounds: np.ndarray
    length: np.ndarray
    balance: np.ndarray
    unclaimed: np.ndarray
    unseen: np.ndarray
    allowed: np.ndarray


# Who fails: by which of the `Evidence`, beyond which bound, and what that says.
RULES = (
    ("length", lambda found: found.length < 1e-3, "returned the global model as it was"),
    ("balance", lambda found: found.balance > 1e-2, "returned no trained model: its biases do not add up"),
    ("unclaimed", lambda found: found.unclaimed > 0.05, "trained on labels that it did not claim"),
    ("unseen", lambda found: found.unseen > found.allowed, "did not train on much of what it claimed"),
)


def allowed(claims, rounds):
    """How much may be unseen of clients with these claims, float64 (n, classes), that were heard in so many rounds, int (n,).

    The bias of a label that a client holds falls in a round, too, if the model expects more of it than there is. FALLS bounds how
    often: after t rounds a label is unseen with a probability of FALLS^t, and three standard deviations are allowed above that,
    with LEAST for the labels of which a client holds so few that the model expects more in every round.
    """
    share, chance = claims / np.maximum(claims.sum(1, keepdims=True), 1e-300), FALLS**rounds
    return np.maximum(LEAST, chance + 3 * np.sqrt(chance * (1 - chance) * (share**2).sum(1)))


def evidence(clients, observed, claims):
    """The `Evidence` in columns of /clients and of /audit, dicts of arrays. claims: float64 (N, classes), samples of each label
    that the clients told, or 0 and 1."""
    row = {
        place: number
        for number, place in enumerate(zip(clients["round"].tolist(), clients["client"].tolist()))
    }
    norms = clients["update_norm"][
        [row[place] for place in zip(observed["round"].tolist(), observed["client"].tolist())]
    ]
    longest = np.zeros(observed["round"].max() + 1)
    np.maximum.at(longest, observed["round"], norms)
    length = norms / np.maximum(longest[observed["round"]], 1e-300)
    change = observed["bias_change"]
    balance = np.abs(change.sum(1)) / np.maximum(np.abs(change).sum(1), 1e-300)
    who, place, rounds = np.unique(observed["client"], return_inverse=True, return_counts=True)
    least, mean, rise = np.full(len(who), np.inf), np.zeros(len(who)), np.zeros((len(who), change.shape[1]))
    np.minimum.at(least, place, length)
    np.add.at(mean, place, balance)
    np.add.at(rise, place, np.maximum(change, 0))
    claims, told = claims[who], np.where(claims[who].any(1), 1.0, np.nan)
    return Evidence(
        who,
        rounds,
        least,
        mean / rounds,
        told * (rise * (claims == 0)).sum(1) / np.maximum(rise.sum(1), 1e-300),
        told * (claims * (rise == 0)).sum(1) / np.maximum(claims.sum(1), 1e-300),
        allowed(claims, rounds),
    )


def failures(found):
    """What each of the `Evidence`'s clients fails by: {rule's name: bool (n,)}."""
    return {name: fails(found) for name, fails, _ in RULES}


def read(path):
    """(`Config`, `Evidence`) of a results file. Raises UserError."""
    with reader.open_results(path) as file, reader.damage(path):
        config = validate(reader.config_of(file), str(path))
        observed, clients = (reader.columns_of(file, table) for table in ("audit", "clients"))
        shared = reader.array_of(file, "partition/shared_labels").astype(np.float64)
    if not len(observed["round"]):
        raise UserError(
            f"{path}: nobody looked at the clients' models; make the run with audit=true, and a method with clients"
        )
    if config.label_sharing.epsilon is not None:
        raise UserError(
            f"{path}: by label_sharing.epsilon the clients do not tell the truth of their labels, which is no fault "
            "to find"
        )
    told = shared.any(1, keepdims=True)  # what the public pool gives to all, all train on
    return config, evidence(clients, observed, shared + told * config.data.shared / shared.shape[1])


def lines(path):
    """Lines of at most WIDTH columns. Raises UserError."""
    config, found = read(path)
    fails = failures(found)
    failed = np.any(list(fails.values()), axis=0)
    yield (
        f"{len(found.client)} of {config.clients} clients were heard, {found.rounds.mean():.1f} times in the mean; "
        f"{failed.sum()} fail"
    )
    for n in np.flatnonzero(failed)[:MOST]:
        why = "; ".join(
            f"{about} ({name} {getattr(found, name)[n]:.3g})" for name, _, about in RULES if fails[name][n]
        )
        yield from textwrap.wrap(
            f"client {found.client[n]}, heard {found.rounds[n]} times: {why}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * 6,
        )
    if failed.sum() > MOST:
        yield f"  and {failed.sum() - MOST} more"
    yield f"{'evidence':<12}{'least':>10}{'median':>10}{'largest':>10}{'who fails':>12}"
    for name, _, _ in RULES:
        values = getattr(found, name)
        values = values[~np.isnan(values)] if not np.isnan(values).all() else np.full(1, np.nan)
        yield f"  {name:<10}{values.min():10.3g}{np.median(values):10.3g}{values.max():10.3g}{fails[name].sum():12d}"
    if config.misbehaving_clients.share:
        bad = draw_misbehaving(config.clients, config.misbehaving_clients, config.seed)[found.client]
        yield (
            f"of the {bad.sum()} {config.misbehaving_clients.kind} clients heard {(failed & bad).sum()} fail, and of the "
            f"{(~bad).sum()} others {(failed & ~bad).sum()}"
        )
