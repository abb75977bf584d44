"""What is in a results file: every column with its unit and meaning. Writer, reader, digest and documents use this."""

import zlib
from typing import NamedTuple

import numpy as np

VERSION = 9


class Column(NamedTuple):
    dtype: str
    unit: str
    about: str
    measured: bool = False  # a clock, a place or a count of bytes: not part of the digest


ROUNDS = {
    "round": Column("i8", "1", "rounds finished"),
    "accuracy": Column("f8", "1", "share of the test set that the global model classifies correctly"),
    "loss": Column("f8", "nat", "mean cross-entropy of the global model on the test set"),
    "accuracy_per_class": Column("f8", "1", "accuracy on the test samples of each class"),
    "kappa1": Column("f8", "1", "weight of the federated model in Eq. (1)"),
    "kappa2": Column("f8", "1", "weight of the augmented model in Eq. (1)"),
    "clients_available": Column("i8", "1", "clients that took part for the pay: all where nobody is paid"),
    "payments": Column(
        "f8",
        "J",
        "what the server paid: incentive.base for each aggregated model, and once for the images that its client makes; in the first round also incentive.labels to who told theirs",
    ),
    "clients_trained": Column("i8", "1", "clients in the cohort"),
    "clients_aggregated": Column("i8", "1", "of them, those whose models were aggregated"),
    "cohort_emd": Column(
        "f8",
        "1",
        "earth mover's distance of the labels on which the cohort trains, pooled, to all clients' own",
    ),
    "clients_emd": Column("f8", "1", "the same of each client's, mean over the cohort by samples"),
    "cohort_labels": Column("i8", "1", "different labels in the cohort"),
    "train_loss": Column("f8", "nat", "loss over the clients' last local epochs, weighted by rho"),
    "train_accuracy": Column("f8", "1", "accuracy during the clients' last local epochs, weighted by rho"),
    "update_cosine": Column(
        "f8", "1", "mean cosine between the changes of two clients, weighted by rho and their lengths"
    ),
    "update_alignment": Column(
        "f8",
        "1",
        "length of the clients' average change over the mean length of their changes: 1 if all are alike, less if they cancel",
    ),
    "augmented_cosine": Column(
        "f8", "1", "cosine between the change of the clients' average and that of the augmented model"
    ),
    "clients_accuracy": Column(
        "f8", "1", "test accuracy under each client's own mix of labels, mean over clients"
    ),
    "clients_accuracy_worst_tenth": Column(
        "f8", "1", "the same, mean over the tenth of the clients for whom it is lowest"
    ),
    "images": Column("i8", "1", "generated images, of all that there are for the server or the clients"),
    "images_used": Column("i8", "1", "of them, those that passed the filter"),
    "augmented_loss": Column(
        "f8", "nat", "loss over the last epoch of the augmented model on generated images"
    ),
    "round_seconds": Column("f8", "s", "the whole round, on rank 0", True),
    "train_seconds": Column("f8", "s", "training clients, on the rank that took longest", True),
    "wait_seconds": Column("f8", "s", "waiting for other ranks before the reduction, mean over ranks", True),
    "generate_start_seconds": Column(
        "f8", "s", "from the beginning of the round to that of generation", True
    ),
    "generate_seconds": Column("f8", "s", "making this round's images, or reading them from the bank", True),
    "generate_ahead_seconds": Column("f8", "s", "making later rounds' images while waiting", True),
    "augment_seconds": Column("f8", "s", "training the augmented model", True),
    "send_seconds": Column("f8", "s", "bringing images that clients train on to all ranks", True),
    "reduce_seconds": Column("f8", "s", "summing the clients' weights over ranks", True),
    "broadcast_seconds": Column("f8", "s", "sending the new weights and the next cohort", True),
    "evaluate_seconds": Column("f8", "s", "testing the global model", True),
    "broadcast_bytes": Column(
        "i8",
        "B",
        "size of the message from rank 0 to every rank, and of the images that clients train on",
        True,
    ),
    "reduce_bytes": Column("i8", "B", "size of the message from every rank to rank 0", True),
}

CLIENTS = {
    "row": Column("i8", "1", "a client and round"),
    "round": Column("i8", "1", "round in which the client trained"),
    "client": Column("i8", "1", "client"),
    "status": Column(
        "S16",
        "",
        "what became of it: aggregated; late, outage, dropout or battery, in a world that acts; declined, for the pay; not finite",
    ),
    "rho": Column("f8", "1", "weight of the client in Eq. (1)"),
    "samples": Column("i8", "1", "training samples, with the generated ones that it has"),
    "images": Column("i8", "1", "generated images among those that it trains on"),
    "share": Column(
        "f8",
        "1",
        "share of the gap between its labels and an even mix that they fill, with method=filled; else 0",
    ),
    "epochs": Column("i8", "1", "passes over them all in the round"),
    "loss_first_epoch": Column("f8", "nat", "mean loss over its first local epoch"),
    "loss_last_epoch": Column("f8", "nat", "mean loss over its last local epoch"),
    "accuracy_last_epoch": Column("f8", "1", "accuracy during its last local epoch"),
    "update_norm": Column("f8", "1", "Euclidean length of the change of its parameters"),
    "start_seconds": Column("f8", "s", "from the beginning of the round to that of its training", True),
    "seconds": Column("f8", "s", "its training", True),
    "rank": Column("i8", "1", "rank that trained it", True),
}

RANKS = {
    "row": Column("i8", "1", "a rank and round", True),
    "round": Column("i8", "1", "round", True),
    "rank": Column("i8", "1", "rank", True),
    "train_seconds": Column(
        "f8", "s", "training clients; rank 0 generates and trains the augmented model before", True
    ),
    "wait_seconds": Column("f8", "s", "idle until the other ranks had trained", True),
}

GENERATED = {
    "number": Column("i8", "1", "an image"),
    "image": Column("u1", "1", "pixels"),
    "label": Column("i8", "1", "class asked for"),
    "prompt": Column("S512", "", "text given to the generator (UTF-8)"),
    "template": Column("i8", "1", "number of the prompt's template"),
    "seed": Column("i8", "1", "seed of its noise"),
    "round": Column("i8", "1", "round in which it joined the server's data"),
    "fidelity": Column(
        "f8",
        "1",
        "probability of its label to the filter's classifier, NaN without a filter; images below generation.min_fidelity are not used",
    ),
    "batch": Column(
        "S64", "", "SHA-256 of all that determines the batch it was made in: its name in the bank"
    ),
}

HINDSIGHT = {
    "candidate": Column("i8", "1", "a model of a round that was tried in hindsight"),
    "round": Column("i8", "1", "the round"),
    "policy": Column(
        "S64",
        "",
        "kappa policy that would have chosen the model; none for a point of the segment between the round's two models",
    ),
    "kappa2": Column("f8", "1", "weight of the augmented model in it"),
    "loss": Column("f8", "nat", "its mean cross-entropy on the test set"),
    "accuracy": Column("f8", "1", "share of the test set that it classifies correctly"),
    "regret": Column("f8", "nat", "its loss less the least of all that were tried in the round"),
}

AUDIT = {
    "observation": Column("i8", "1", "a client and round whose model was looked at"),
    "round": Column("i8", "1", "the round"),
    "client": Column("i8", "1", "the client"),
    "bias_change": Column("f8", "1", "change of the bias of each class in the last layer of its model"),
}

PROBES = {
    "probe": Column("i8", "1", "a round that was probed"),
    "round": Column("i8", "1", "the round"),
    "gradient_norm": Column(
        "f8",
        "1",
        "length of the gradient of the probed clients' common loss F, at the weights before the round",
    ),
    "weight_divergence": Column(
        "f8",
        "1",
        "distance of the clients' average from the model trained on the cohort's data in one place, over its length",
    ),
    "seconds": Column("f8", "s", "the probe, on rank 0; part of round_seconds", True),
}

PROBED_CLIENTS = {
    "probed_client": Column("i8", "1", "a client in a round that was probed"),
    "round": Column("i8", "1", "the round"),
    "client": Column("i8", "1", "the client, of the probed ones or of the cohort"),
    "samples": Column("i8", "1", "on which it trains, with generated ones"),
    "label_emd": Column("f8", "1", "earth mover's distance of their labels to all clients' own"),
    "labels": Column("i8", "1", "different labels among them"),
    "gradient_difference": Column(
        "f8", "1", "length of the gradient of its loss F_n less that of F, at the weights before the round"
    ),
    "local_error": Column(
        "f8",
        "nat",
        "loss of the model that it trained on what it trained on, less the least; NaN for a client that did not train",
    ),
}

PARTITION = {
    "pointers": Column(
        "i8", "1", "client n holds samples pointers[n] to pointers[n + 1] of the shuffled training set"
    ),
    "label_histograms": Column("i4", "1", "samples of each label that the client holds"),
    "shared_labels": Column("i4", "1", "what the client told the server of its labels"),
    "emd": Column("f8", "1", "earth mover's distance of the client's labels to the population's"),
}

# Tables that grow, each along the dimension that its first column numbers.
TABLES = {
    "rounds": ROUNDS,
    "clients": CLIENTS,
    "ranks": RANKS,
    "generated": GENERATED,
    "hindsight": HINDSIGHT,
    "audit": AUDIT,
    "probes": PROBES,
    "probed_clients": PROBED_CLIENTS,
}
# A group with a data set for each table, (appends, 1 + columns) int64: how many rows the table has after an
# append, and the CRC-32 of what was added to each column. HDF5's own checksum (Fletcher32) covers a whole
# chunk, which it writes again, in place, at each append: a reader beside the writer meets half-written
# chunks, of which it can read nothing at all, and a kill or a power cut would leave one, with the finished
# rounds in it. What is written once (the partition, the weights) has HDF5's.
CHECKSUMS = "checksums"
FINISHED = 255  # the mark of a finished run, 0 before: all bits differ, so a flipped one is neither
# Names of a column's other dimensions.
DIMENSIONS = {
    "accuracy_per_class": ("class",),
    "bias_change": ("class",),
    "image": ("channel", "height", "width"),
    "pointers": ("pointer",),
    "label_histograms": ("client", "class"),
    "shared_labels": ("client", "class"),
    "emd": ("client",),
}


def checksum(array):
    """CRC-32 of the bytes of an array."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def checksum_of_attributes(file):
    """CRC-32 of all attributes of /config and /environment: HDF5 has no checksum of its own where it keeps
    texts."""
    texts = [
        f"{group}/{name}={value}\n"
        for group in ("config", "environment")
        for name, value in sorted(file[group].attrs.items())
    ]
    return zlib.crc32("".join(texts).encode("utf-8", "surrogateescape"))
