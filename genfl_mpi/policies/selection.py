"""Which clients train: (state) -> int array (cohort,) of distinct client ids."""

from genfl_mpi import streams


def random(state):
    """Uniformly, without replacement."""
    rng = streams.generator(state.config.seed, "cohort", state.round)
    return rng.choice(state.config.clients, state.config.cohort, replace=False, shuffle=False)


SELECTION = {"random": random}
