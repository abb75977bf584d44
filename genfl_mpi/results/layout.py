"""The layout of a results file: columns with unit and meaning, for writer, reader, digest and documents."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import h5py

VERSION = 9


class Column(NamedTuple):
    """Describe a column. measured: a time, a rank or a number of bytes; not part of the digest."""

    dtype: str
    unit: str
    description: str
    measured: bool = False


ROUNDS = {
    "round": Column("i8", "1", "number of finished rounds"),
    "accuracy": Column(
        "f8", "1", "accuracy of the global model on the test set; NaN in rounds between two evaluations"
    ),
    "loss": Column("f8", "nat", "mean cross-entropy of the global model on the test set"),
    "accuracy_per_class": Column("f8", "1", "accuracy on the test samples of each class"),
    "kappa1": Column("f8", "1", "weight of the federated model in Eq. (1)"),
    "kappa2": Column("f8", "1", "weight of the augmented model in Eq. (1)"),
    "clients_available": Column(
        "i8", "1", "clients that participate for the payment; all if clients are not paid"
    ),
    "payments": Column(
        "f8",
        "J",
        "payments of the server: incentive.base for each aggregated model, and once for the images that its "
        "client makes; in the first round also incentive.labels for each client that shared its labels",
    ),
    "clients_trained": Column("i8", "1", "clients in the cohort"),
    "clients_aggregated": Column("i8", "1", "clients whose models were aggregated"),
    "cohort_emd": Column(
        "f8",
        "1",
        "earth mover's distance between the pooled labels of the cohort's training data and all clients' "
        "real labels",
    ),
    "clients_emd": Column(
        "f8",
        "1",
        "earth mover's distance between a client's labels and all clients' real labels, mean over the cohort "
        "weighted by samples",
    ),
    "cohort_labels": Column("i8", "1", "distinct labels in the cohort"),
    "train_loss": Column("f8", "nat", "loss over the clients' last local epochs, weighted by rho"),
    "train_accuracy": Column("f8", "1", "accuracy during the clients' last local epochs, weighted by rho"),
    "update_cosine": Column(
        "f8", "1", "mean cosine between the updates of two clients, weighted by rho and their norms"
    ),
    "update_alignment": Column(
        "f8",
        "1",
        "norm of the clients' average update over the mean norm of their updates: 1 if all are equal, less "
        "if they cancel",
    ),
    "augmented_cosine": Column(
        "f8", "1", "cosine between the update of the clients' average and that of the augmented model"
    ),
    "clients_accuracy": Column(
        "f8", "1", "test accuracy under each client's label distribution, mean over clients"
    ),
    "clients_accuracy_worst_tenth": Column(
        "f8",
        "1",
        "test accuracy under each client's label distribution, mean over the tenth of the clients with the "
        "lowest",
    ),
    "epsilon": Column(
        "f8",
        "1",
        "epsilon of the rounds so far for a whole client, at privacy.delta; NaN without differential privacy",
    ),
    "epsilon_with_labels": Column(
        "f8",
        "1",
        "epsilon including the labels that clients shared beforehand; infinite if these were exact",
    ),
    "clip": Column("f8", "1", "bound of the clients' updates, with differential privacy"),
    "noise_to_update": Column(
        "f8",
        "1",
        "expected norm of the noise over that of the clients' mean update, which includes distributed noise",
    ),
    "images": Column("i8", "1", "generated images so far, at the server or the clients"),
    "images_used": Column("i8", "1", "generated images that passed the filter"),
    "augmented_loss": Column(
        "f8", "nat", "loss over the last epoch of the augmented model on generated images"
    ),
    "round_seconds": Column("f8", "s", "the whole round, on rank 0", True),
    "train_seconds": Column("f8", "s", "training clients, on the slowest rank", True),
    "wait_seconds": Column("f8", "s", "waiting for other ranks before the reduction, mean over ranks", True),
    "generate_start_seconds": Column(
        "f8", "s", "from the start of the round to the start of generation", True
    ),
    "generate_seconds": Column(
        "f8", "s", "generating this round's images, or reading them from the bank", True
    ),
    "generate_ahead_seconds": Column("f8", "s", "generating later rounds' images while waiting", True),
    "augment_seconds": Column("f8", "s", "training the augmented model", True),
    "send_seconds": Column("f8", "s", "sending the images that clients train on to all ranks", True),
    "reduce_seconds": Column("f8", "s", "summing the clients' weights over ranks", True),
    "mask_seconds": Column("f8", "s", "masking what the clients send, on the slowest rank", True),
    "unmask_seconds": Column("f8", "s", "removing the masks from the sum", True),
    "broadcast_seconds": Column("f8", "s", "sending the new weights and the next cohort", True),
    "evaluate_seconds": Column("f8", "s", "testing the global model", True),
    "broadcast_bytes": Column(
        "i8",
        "B",
        "size of the message from rank 0 to every rank, and of the images that clients train on",
        True,
    ),
    "reduce_bytes": Column(
        "i8",
        "B",
        "size of the message from every rank to rank 0, and of the models that rank 0 sends in slices",
        True,
    ),
    "keys_bytes": Column("i8", "B", "public keys that the clients send and receive for their masks", True),
    "shares_bytes": Column("i8", "B", "shares of secrets that the clients send and receive", True),
    "masked_bytes": Column("i8", "B", "masked integers that the clients send", True),
    "unmask_bytes": Column(
        "i8", "B", "shares that the clients send to remove masks, and the requests for them", True
    ),
    "images_from_bank": Column(
        "i8",
        "1",
        "images of this round that other runs, or an earlier start, had generated; -1: not recorded",
        True,
    ),
    "bank_seconds": Column("f8", "s", "reading images from the bank; part of generate_seconds", True),
    "device": Column(
        "S64", "", "models of the GPUs, or instruction sets of the CPUs, that computed the round", True
    ),
    "subset_accuracy": Column(
        "f8", "1", "accuracy of the global model on the test samples of evaluation.subset; NaN without any"
    ),
    "subset_loss": Column(
        "f8",
        "nat",
        "mean cross-entropy of the global model on the test samples of evaluation.subset; NaN without any",
    ),
    "refine_seconds": Column("f8", "s", "refining the weights of Eq. (1) with the server's images", True),
    "virtual_seconds": Column(
        "f8", "s", "end of the round on the virtual clock; NaN with time.driver=synchronous", True
    ),
}
# Columns that older files of this layout lack; `reader` returns -1, NaN or b"" for them. Those that are not
# measured are part of the digest only if they have other values.
ADDED = (
    "images_from_bank",
    "bank_seconds",
    "device",
    "subset_accuracy",
    "subset_loss",
    "generating_seconds",
    "refine_seconds",
    "epsilon",
    "epsilon_with_labels",
    "clip",
    "noise_to_update",
    "mask_seconds",
    "unmask_seconds",
    "keys_bytes",
    "shares_bytes",
    "masked_bytes",
    "unmask_bytes",
    "virtual_seconds",
    "staleness",
    "cell",
)

CLIENTS = {
    "row": Column("i8", "1", "number of the row, one for each client and round"),
    "round": Column("i8", "1", "round in which the client trained"),
    "client": Column("i8", "1", "client"),
    "status": Column(
        "S16",
        "",
        "aggregated, or the reason why not: late, outage, dropout or battery (in a world that acts on the "
        "run); declined (for the payment); not finite; void (too few others survived a round of secure "
        "aggregation)",
    ),
    "rho": Column("f8", "1", "weight of the client in Eq. (1)"),
    "samples": Column("i8", "1", "training samples, including generated images"),
    "images": Column("i8", "1", "generated images among its training samples"),
    "share": Column(
        "f8",
        "1",
        "share of the gap between its labels and an even mix that its images fill, with method=filled; "
        "otherwise 0",
    ),
    "epochs": Column("i8", "1", "passes over its training samples in the round"),
    "loss_first_epoch": Column("f8", "nat", "mean loss over its first local epoch"),
    "loss_last_epoch": Column("f8", "nat", "mean loss over its last local epoch"),
    "accuracy_last_epoch": Column("f8", "1", "accuracy during its last local epoch"),
    "update_norm": Column("f8", "1", "Euclidean norm of the update of its parameters"),
    "start_seconds": Column("f8", "s", "from the start of the round to the start of its training", True),
    "seconds": Column("f8", "s", "duration of its training", True),
    "rank": Column("i8", "1", "rank that trained it", True),
    "staleness": Column("i8", "1", "rounds that ended between the start and the arrival of its update", True),
    "cell": Column("i8", "1", "cell of the client with time.driver=tiers; otherwise -1"),
}

RANKS = {
    "row": Column("i8", "1", "number of the row, one for each rank and round", True),
    "round": Column("i8", "1", "round", True),
    "rank": Column("i8", "1", "rank", True),
    "train_seconds": Column(
        "f8", "s", "training clients; rank 0 first generates images and trains the augmented model", True
    ),
    "wait_seconds": Column("f8", "s", "waiting for the other ranks after training", True),
    "generating_seconds": Column(
        "f8", "s", "generating its share of the round's images, before training; 0 if rank 0 makes all", True
    ),
}

GENERATED = {
    "number": Column("i8", "1", "number of the image"),
    "image": Column("u1", "1", "pixels"),
    "label": Column("i8", "1", "requested class"),
    "prompt": Column("S512", "", "prompt for the generator (UTF-8)"),
    "template": Column("i8", "1", "number of the prompt's template"),
    "seed": Column("i8", "1", "seed of its noise"),
    "round": Column("i8", "1", "round in which it was added to the server's data"),
    "fidelity": Column(
        "f8",
        "1",
        "probability of its label by the filter's classifier, NaN without a filter; images below "
        "generation.min_fidelity are not used",
    ),
    "batch": Column(
        "S64",
        "",
        "SHA-256 of everything that determines the batch it was generated in; the batch's name in the bank",
    ),
    "cell": Column("i8", "1", "cell whose edge server made it, with time.generators=edges; otherwise -1"),
}

HINDSIGHT = {
    "candidate": Column("i8", "1", "number of a model that was evaluated in hindsight"),
    "round": Column("i8", "1", "round"),
    "policy": Column(
        "S64",
        "",
        "kappa policy that would have chosen the model; empty for a point of the segment between the round's "
        "two models",
    ),
    "kappa2": Column("f8", "1", "weight of the augmented model in it"),
    "loss": Column("f8", "nat", "its mean cross-entropy on the test set"),
    "accuracy": Column("f8", "1", "its accuracy on the test set"),
    "regret": Column("f8", "nat", "its loss minus the lowest loss of all models evaluated in the round"),
}

AUDIT = {
    "observation": Column("i8", "1", "number of an observed model, one for each client and round"),
    "round": Column("i8", "1", "round"),
    "client": Column("i8", "1", "client"),
    "bias_change": Column("f8", "1", "change of each class's bias in the last layer of its model"),
}

PROBES = {
    "probe": Column("i8", "1", "number of a probe, one for each probed round"),
    "round": Column("i8", "1", "round"),
    "gradient_norm": Column(
        "f8",
        "1",
        "norm of the gradient of the probed clients' common loss F, at the weights before the round",
    ),
    "weight_divergence": Column(
        "f8",
        "1",
        "distance between the clients' average and the model trained on the cohort's pooled data, over the "
        "norm of the latter",
    ),
    "seconds": Column("f8", "s", "duration of the probe, on rank 0; part of round_seconds", True),
}

PROBED_CLIENTS = {
    "probed_client": Column("i8", "1", "number of the row, one for each client and probed round"),
    "round": Column("i8", "1", "round"),
    "client": Column("i8", "1", "client that was probed, or is in the cohort"),
    "samples": Column("i8", "1", "training samples, including generated images"),
    "label_emd": Column("f8", "1", "earth mover's distance between its labels and all clients' real labels"),
    "labels": Column("i8", "1", "distinct labels among its samples"),
    "gradient_difference": Column(
        "f8",
        "1",
        "norm of the difference between the gradients of its loss F_n and of F, at the weights before the "
        "round",
    ),
    "local_error": Column(
        "f8",
        "nat",
        "loss of its trained model on its training samples, minus its loss after probes.epochs more passes "
        "over them, at least 0; NaN for a client that did not train",
    ),
}

CALIBRATED = {
    "calibration": Column("i8", "1", "number of a calibration of the output layer"),
    "round": Column("i8", "1", "number of finished rounds"),
    "accuracy": Column("f8", "1", "accuracy of the calibrated model on the test set"),
    "loss": Column("f8", "nat", "mean cross-entropy of the calibrated model on the test set"),
    "accuracy_per_class": Column("f8", "1", "accuracy on the test samples of each class"),
    "seconds": Column("f8", "s", "duration of the calibration, on rank 0; part of round_seconds", True),
}

ATTACKS = {
    "attack": Column("i8", "1", "number of the row, one for each round of a run with attackers"),
    "round": Column("i8", "1", "round"),
    "attackers": Column("i8", "1", "attackers in the cohort"),
    "attackers_rho": Column("f8", "1", "sum of the attackers' weights in Eq. (1)"),
    "success": Column(
        "f8",
        "1",
        "share of the test images of other classes that the trigger turns into attack.target, NaN without a "
        "backdoor",
    ),
}

PERSONAL = {
    "personal_client": Column("i8", "1", "number of the row, one for each client and evaluated round"),
    "round": Column("i8", "1", "round"),
    "client": Column("i8", "1", "client"),
    "samples": Column("i8", "1", "its local test samples"),
    "trained": Column("i8", "1", "round in which it last trained; 0 if never"),
    "global_accuracy": Column("f8", "1", "accuracy of the global model on its local test samples"),
    "accuracy": Column(
        "f8",
        "1",
        "accuracy of its personal model on its local test samples; NaN without any, like global_accuracy",
    ),
}

PARTITION = {
    "pointers": Column(
        "i8", "1", "client n holds samples pointers[n] to pointers[n + 1] of the shuffled training set"
    ),
    "label_histograms": Column("i4", "1", "samples of each label that the client holds"),
    "shared_labels": Column("i4", "1", "labels that the client shared with the server"),
    "emd": Column("f8", "1", "earth mover's distance between the client's labels and the population's"),
}

# Tables that grow along the dimension numbered by their first column.
TABLES = {
    "rounds": ROUNDS,
    "clients": CLIENTS,
    "ranks": RANKS,
    "generated": GENERATED,
    "hindsight": HINDSIGHT,
    "audit": AUDIT,
    "probes": PROBES,
    "probed_clients": PROBED_CLIENTS,
    "calibrated": CALIBRATED,
    "attacks": ATTACKS,
    "personal": PERSONAL,
}
# Tables that older files of this layout lack: `reader` returns no rows of them. Without rows they are not
# part of the digest.
ADDED_TABLES = ("calibrated", "attacks", "personal")
# A group with a data set for each table, (appends, 1 + columns) int64: the number of rows after an append,
# and the CRC-32 of what was added to each column. HDF5's checksum (Fletcher32) covers a whole chunk, which
# each append rewrites in place: a concurrent reader would meet half-written chunks and could read none of
# their rows, and a kill or a power cut would leave a half-written chunk that holds finished rounds. Data
# written only once (the partition, the weights) have HDF5's checksum.
CHECKSUMS = "checksums"
FINISHED = 255  # marks a finished run; 0 before. All bits differ, so a flipped bit gives neither value.
# Names of a column's other dimensions.
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "accuracy_per_class": ("class",),
    "bias_change": ("class",),
    "image": ("channel", "height", "width"),
    "pointers": ("pointer",),
    "label_histograms": ("client", "class"),
    "shared_labels": ("client", "class"),
    "emd": ("client",),
}


def checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def attributes_checksum(file: h5py.File) -> int:
    """Return the CRC-32 of all attributes of /config and /environment. HDF5 does not checksum attributes."""
    texts = [
        f"{group}/{name}={value}\n"
        for group in ("config", "environment")
        for name, value in sorted(file[group].attrs.items())
    ]
    return zlib.crc32("".join(texts).encode("utf-8", "surrogateescape"))
