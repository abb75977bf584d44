"""Secure aggregation of one round: which clients share masks and secrets, and how masks are removed.

The four phases of Bonawitz et al. 2017, in the honest-but-curious model:

    keys      every member sends two public keys, and receives those of its neighbours
    shares    it shares its private mask key and the seed of its self mask among its neighbours and itself
    upload    it sends its masked integers
    unmask    the server names the survivors; these send shares of the self masks of survivors, and of the
              mask keys of members that dropped out

With a complete graph all members are neighbours; with `neighbours` = k each has k, on a ring in random order
(Bell et al. 2020). All secrets are keyed by (seed, round, client), so every rank can act as any client; that
also makes the shares' encryption between clients pointless here: its bytes are counted, and it is not done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from genfl_mpi.privacy import shamir
from genfl_mpi.privacy.masks import Term, agree, public_key
from genfl_mpi.util import streams

KEY_BYTES = 32
# Two shares, the ids of sender and receiver, and the tag of an authenticated cipher.
SHARE_MESSAGE_BYTES = 2 * shamir.SHARE_BYTES + 2 * 4 + 16
UNIT_BYTES = 8  # of a masked integer

# What the server asks for about a member, in `Request`.
OUTSIDE, SURVIVED, DROPPED = 0, 1, 2


class PhaseBytes(NamedTuple):
    """Bytes that one member sends and receives: (up, down) of each phase."""

    keys: tuple[int, int]
    shares: tuple[int, int]
    upload: tuple[int, int]
    unmask: tuple[int, int]

    @property
    def up(self) -> int:
        """Return the bytes that the member sends."""
        return sum(up for up, _ in self)

    @property
    def down(self) -> int:
        """Return the bytes that the member receives."""
        return sum(down for _, down in self)


def phase_bytes(units: int, members: int, neighbours: int | None) -> PhaseBytes:
    """Count the bytes of a member that survives. units: integers of the masked vector."""
    degree = count_neighbours(members, neighbours)
    return PhaseBytes(
        keys=(2 * KEY_BYTES, 2 * KEY_BYTES * degree),
        shares=(SHARE_MESSAGE_BYTES * degree, SHARE_MESSAGE_BYTES * degree),
        upload=(UNIT_BYTES * units, 0),
        unmask=(shamir.SHARE_BYTES * (degree + 1), -(-degree // 8)),
    )


def count_neighbours(members: int, neighbours: int | None) -> int:
    """Return the number of a member's neighbours. neighbours: even, or None for a complete graph."""
    return max(0, members - 1 if neighbours is None else min(neighbours, members - 1))


def default_threshold(holders: int) -> int:
    """Return the number of shares that recover a secret: more than two thirds of its holders."""
    return 2 * holders // 3 + 1


class Secrets(NamedTuple):
    """Secrets of a member for one round, 32 bytes each: its private mask key, and its self mask's seed."""

    private: bytes
    self_mask: bytes


class Session:
    """The protocol of one round.

    seed: of the run; round: 0 is the first; members: int (n,), ids of the clients that share keys, distinct
    and ascending. threshold: shares that recover a secret, None for `default_threshold`. neighbours: as in
    `count_neighbours`.

    around: places of each member's neighbours, int arrays.
    """

    def __init__(
        self, seed: int, round: int, members: np.ndarray, threshold: int | None, neighbours: int | None
    ) -> None:
        self.seed, self.round, self.members = seed, round, members.tolist()
        degree = count_neighbours(len(members), neighbours)
        self.threshold = threshold or default_threshold(degree + 1)
        self.around = _neighbours(len(members), degree, streams.generator(seed, "neighbours", round))
        self._public: dict[int, bytes] = {}

    def secrets(self, place: int) -> Secrets:
        """Draw the secrets of the member at a place."""
        rng = streams.generator(self.seed, "mask key", self.round, self.members[place])
        return Secrets(rng.bytes(KEY_BYTES), rng.bytes(KEY_BYTES))

    def terms(self, place: int) -> list[Term]:
        """Return the masks that the member at a place adds to its integers."""
        own = self.secrets(place)
        return [(1, own.self_mask), *self._pairwise(place, own.private, self.around[place])]

    def can_unmask(self, survived: np.ndarray) -> bool:
        """Return whether the survivors can recover every secret that is needed. survived: bool (n,)."""
        return bool(survived.any()) and all(
            survived[self._holders(place)].sum() >= self.threshold for place in range(len(self.members))
        )

    def recover(self, survived: np.ndarray) -> list[bytes]:
        """Recover one secret of each member from the survivors' shares.

        The self mask's seed of a survivor, the private mask key of a member that dropped out; never both.
        survived: bool (n,), of which `can_unmask` is true.
        """
        return [shamir.recover(self.shares(place, survived)) for place in range(len(self.members))]

    def shares(self, place: int, survived: np.ndarray) -> dict[int, int]:
        """Return what the surviving holders send about a member: `threshold` shares of one of its secrets."""
        private, self_mask = self.secrets(place)
        holders = self._holders(place)
        points = (holders[survived[holders]][: self.threshold] + 1).tolist()
        purpose, secret = ("self mask shares", self_mask) if survived[place] else ("key shares", private)
        rng = streams.generator(self.seed, purpose, self.round, self.members[place])
        return shamir.split(secret, self.threshold, points, rng)

    def masks_to_remove(self, request: Sequence[int] | np.ndarray, recovered: Sequence[bytes]) -> list[Term]:
        """Return the masks whose sum turns the survivors' masked sum into their sum.

        request: SURVIVED or DROPPED of each member; recovered: of `recover`.
        """
        terms: list[Term] = []
        for place, (state, secret) in enumerate(zip(request, recovered)):
            if state == SURVIVED:
                terms.append((-1, secret))
            else:
                # What the survivors added for the member is what the member would have added, negated.
                survivors = [other for other in self.around[place].tolist() if request[other] == SURVIVED]
                terms += self._pairwise(place, secret, np.array(survivors, dtype=np.int64))
        return terms

    def _pairwise(self, place: int, private: bytes, others: np.ndarray) -> list[Term]:
        """Return the masks that a member shares with others, as the member adds them."""
        return [
            (1 if place < other else -1, agree(private, self._public_key(other))) for other in others.tolist()
        ]

    def _public_key(self, place: int) -> bytes:
        if place not in self._public:
            self._public[place] = public_key(self.secrets(place).private)
        return self._public[place]

    def _holders(self, place: int) -> np.ndarray:
        """Return the places of the members that hold shares of a member's secrets, itself included."""
        return np.sort(np.append(self.around[place], place))


def _neighbours(members: int, degree: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return each member's neighbours: its degree / 2 next ones on both sides of a ring in random order."""
    if degree == members - 1:
        return [np.delete(np.arange(members), place) for place in range(members)]
    ring = rng.permutation(members)
    position = np.argsort(ring)
    steps = np.concatenate([np.arange(1, degree // 2 + 1), -np.arange(1, degree // 2 + 1)])
    return [np.sort(ring[(position[place] + steps) % members]) for place in range(members)]
