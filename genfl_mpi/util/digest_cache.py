"""Remember the SHA-256 of large data beside them, for as long as their files do not change."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

MIN_BYTES = 1 << 26  # smaller data are hashed in less time than it takes to notice
SETTLED = 2.0  # seconds: a file changed later than that may change again without a new time


def remembered(place: Path, files: Iterable[Path], compute: Callable[[], str], about: str = "") -> str:
    """Return `compute()`, a digest of what `files` hold, from the file `place` if they have not changed.

    place: hidden, beside the data; if it cannot be written, the digest is computed every time. about: what
    the digest depends on besides the files, such as versions of libraries.
    """
    stamp = _stamp(files, about)
    if stamp is None:
        return compute()
    with suppress(OSError, ValueError, TypeError, KeyError):
        stored = json.loads(place.read_text())
        if stored["stamp"] == stamp and len(stored["sha256"]) == 64:
            return stored["sha256"]
    digest = compute()
    if _stamp(files, about) != stamp:  # changed meanwhile
        return digest
    unfinished = place.with_name(f"{place.name}.{os.uname().nodename}.{os.getpid()}")
    with suppress(OSError):
        unfinished.write_text(json.dumps({"stamp": stamp, "sha256": digest}))
        os.replace(unfinished, place)
    with suppress(OSError):
        unfinished.unlink(missing_ok=True)
    return digest


def _stamp(files: Iterable[Path], about: str) -> str | None:
    """Hash name, size, times, device and inode of files; None if they are small, or were just changed."""
    total, size = hashlib.sha256(about.encode()), 0
    for path in files:
        one = path.stat()
        if max(one.st_mtime, one.st_ctime) > time.time() - SETTLED:
            return None
        size += one.st_size
        what = one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_dev, one.st_ino
        total.update(f"{path} {what}\n".encode())
    return total.hexdigest() if size >= MIN_BYTES else None
