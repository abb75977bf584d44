"""Fuzz the reading of configurations: python tests/fuzz_config.py -runs=100000.

A failure prints the text that caused it.
"""

import sys

import atheris

with atheris.instrument_imports(include=["genfl_mpi", "yaml"]):
    from genfl_mpi.config import loading, yaml_text
    from genfl_mpi.util.errors import UserError


def read(data):
    """The first byte tells how the rest is given: as a file, an override or a swept value."""
    provider = atheris.FuzzedDataProvider(data)
    how, text = provider.ConsumeIntInRange(0, 2), provider.ConsumeUnicodeNoSurrogates(300)
    try:
        if how == 0:
            parsed = yaml_text.parse(text, "file")
            if isinstance(parsed, dict):
                loading.load(parsed)
        else:
            loading.load(None, [text if how == 1 else f"sweep.training.lr={text}"])
    except UserError as error:
        assert str(error)


atheris.Setup(sys.argv, read)
atheris.Fuzz()
