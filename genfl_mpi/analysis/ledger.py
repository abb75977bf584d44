"""Write the ledger of claims as text for a terminal, and as Markdown for a file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from genfl_mpi.analysis.claims import shortage
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import WIDTH, counted

if TYPE_CHECKING:
    from genfl_mpi.analysis.claims import Claim, Row

    Judged = list[tuple[Claim, list[Row], str]]

VERDICT = len("supported by costs")  # columns of a terminal


def text(judged: Judged, note: str) -> Iterator[str]:
    """Yield lines of at most WIDTH columns. judged: from `claims.ledger`. note: closing paragraph."""
    if short := shortage(row for _, rows, _ in judged for row in rows):
        yield from textwrap.wrap(short, WIDTH)
        yield ""
    for claim, rows, word in judged:
        first, *rest = textwrap.wrap(
            f"{claim.name:<4}{claim.statement}", WIDTH - VERDICT - 1, subsequent_indent="    "
        )
        yield f"{first:<{WIDTH - VERDICT}}{name_verdict(rows, word):>{VERDICT}}"
        yield from rest
        if claim.lacks(rows):
            yield from textwrap.wrap(
                lacking(claim, rows), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 8
            )
        statistic = None
        for row in rows:
            if row.statistic != statistic:
                statistic = row.statistic
                yield f"      {statistic}: above {row.threshold:g}"
            word, needs = row.verdict
            place, seeds = (
                f"        {row.setting}",
                "" if row.is_computed else counted(len(row.values), "seed"),
            )
            yield f"{place}{effect(row):>{58 - len(place)}}  {seeds:>8}  {word}"
            if needs:
                yield f"{'needs ' + needs:>{WIDTH}}"
        yield ""
    yield from textwrap.wrap(note, WIDTH)


def write(judged: Judged, note: str, out: str | Path) -> None:
    """Write the same into the Markdown file `out`. Raises UserError."""
    try:
        Path(out).write_text("\n".join(_markdown(judged, note)) + "\n")
    except OSError as error:
        raise UserError(f"{out}: the table cannot be written: {error.strerror}") from None


def _markdown(judged: Judged, note: str) -> Iterator[str]:
    yield "# The paper's claims\n"
    if short := shortage(row for _, rows, _ in judged for row in rows):
        yield "\n".join(textwrap.wrap(short, 120)) + "\n"
    yield "| claim | verdict |\n|---|---|"
    for claim, rows, word in judged:
        judgement = f"{name_verdict(rows, word)}{'' if rows else f': {lacking(claim, rows)}'}"
        yield f"| **{claim.name}** {claim.statement} | {judgement} |"
    yield "\n| claim | statistic | above | setting | effect [95 % interval] | seeds | rounds | verdict |"
    yield "|---|---|---|---|---|---|---|---|"
    for claim, rows, word in judged:
        for row in rows:
            verdict, needs = row.verdict
            yield (
                f"| {claim.name} | {row.statistic} | {row.threshold:g} | {row.setting} | {effect(row)} "
                f"| {len(row.values) if row.rounds else ''} | {row.rounds or ''} "
                f"| {verdict}{f': needs {needs}' if needs else ''} |"
            )
        if claim.lacks(rows):
            yield f"| {claim.name} | {lacking(claim, rows)} | | | | | | {'undecided' if rows else word} |"
    yield "\n" + "\n".join(textwrap.wrap(note, 120))


def name_verdict(rows: list[Row], word: str) -> str:
    """Return a claim's verdict, marked if costs alone decided it and not results of the runs."""
    return f"{word} by costs" if rows and all(row.is_computed for row in rows) else word


def lacking(claim: Claim, rows: list[Row]) -> str:
    """Return what a claim needs if it has no row, or a part of it has none."""
    return f"{'in part ' if rows else ''}needs runs of {claim.needs}"


def effect(row: Row) -> str:
    """Format the mean over seeds with its interval, or the single value."""
    if row.is_computed:
        return f"{row.values[0]:.3g}"
    if len(row.values) == 1:
        return f"{row.values[0]:+.3f} [one seed]"
    low, high = row.interval
    return f"{row.values.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
