"""The augmented model's weight in Eq. (1): (state) -> kappa2 in [0, 1]; kappa1 is 1 - kappa2."""


def fixed(state):
    """The configured kappa2, in every round."""
    return state.config.kappa.kappa2


KAPPA = {"fixed": fixed}
