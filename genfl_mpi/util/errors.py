"""The exception for errors that the user can fix."""


class UserError(Exception):
    """One line: what is wrong, where, and what to do.

    The command prints it without a traceback and exits with status 2.
    """

    on_all_ranks: bool = False  # set where all ranks raise it together
    unclean: bool = False  # set after a disk failure, when closing an HDF5 file on that disk may crash
