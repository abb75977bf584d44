"""The augmented model omega_a (III-B): the clients' local training, at the server, on the images that it has."""

from genfl_mpi.learning.training import at_round, train
from genfl_mpi.util import streams


def augment(model, omega, images, settings, seed, round):
    """Train omega_a from the global weights on all images of the server. Returns it, float32 (size,), with the training's `Report`; (None,
    None) while there are no images.

    model: rank 0's `FlatModel`, which is overwritten; omega: float32 (size,), on its device; images: `ServerImages`; settings:
    config.augmented; round: of which the first is 0.
    """
    if not len(images):
        return None, None
    report = train(
        model,
        omega,
        *images.normalised(),
        at_round(settings, round),
        streams.generator(seed, "augmented", round),
    )
    omega_a = model.weights.to("cpu", copy=True)
    if not omega_a.sum().isfinite():
        raise FloatingPointError(
            "the augmented model's weights are not finite; a smaller augmented.lr may help"
        )
    return omega_a, report
