"""The one exception that is the user's to mend."""


class UserError(Exception):
    """What was wrong, where, and what to do, in one line. The command prints it without a traceback and exits with 2."""

    on_all_ranks = False  # set where every rank raises it together
    unclean = False  # set where a disk failed: HDF5, asked to close a file there, may crash
