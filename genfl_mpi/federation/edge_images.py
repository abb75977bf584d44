"""The images of edge servers: in tiers, each cell's own, made for the labels of its clients."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.edge.cells import nearest
from genfl_mpi.federation.server_images import ServerImages
from genfl_mpi.util import streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.policies import ServerState
    from genfl_mpi.federation.server_images import Made
    from genfl_mpi.generation.bank import Batch


class EdgeImages(ServerImages):
    """Plan, generate and keep the images of all edge servers, on rank 0.

    images: of a server without images, whose settings, generator and speed all cells share. cell_of: int
    (clients,), the cell of each client.

    cells: {cell: its `ServerImages`}, of the cells that have clients. made_in: the cell of each batch of the
    round. All other attributes are sums over the cells.
    """

    def __init__(self, images: ServerImages, cell_of: np.ndarray) -> None:
        vars(self).update(vars(images))
        self.config = _making_in_every_round(images.config)
        self.cell_of = cell_of
        self.cells = {cell: _of_cell(images, cell) for cell in np.unique(cell_of).tolist()}
        self.made_in: list[int] = []

    def state_of(self, cell: int, state: ServerState) -> ServerState:
        """Return what a cell's edge server knows in a round: its clients' labels, and its images."""
        inside = self.cell_of == cell
        cohort = None if state.cohort is None else state.cohort[inside[state.cohort]]
        return replace(
            state,
            cohort=cohort,
            shared_labels=np.where(inside[:, None], state.shared_labels, 0),
            generated=self.cells[cell].made_of_label,
        )

    def __len__(self) -> int:
        return sum(map(len, self.cells.values()))

    def make(
        self, state: ServerState, leaving: Callable[[], int], note: Callable[..., object]
    ) -> tuple[list[Made], bool]:
        """Do as `ServerImages.make` for every cell."""
        made: dict[int, list[Made]] = {}
        for cell, images in self.cells.items():
            made[cell], left = images.collect(self.state_of(cell, state), leaving, note)
            if left:
                return [], True
        for cell, images in self.cells.items():
            images.keep(made[cell])
        self._sum()
        self.made_in = [cell for cell, batches in made.items() for _ in batches]
        return [batch for batches in made.values() for batch in batches], False

    def restore(self, generated: dict[str, np.ndarray]) -> None:
        """Give each cell its images of earlier rounds."""
        for cell, images in self.cells.items():
            images.restore({name: column[generated["cell"] == cell] for name, column in generated.items()})
        self._sum()

    def _sum(self) -> None:
        """Add up what the cells count."""
        cells = self.cells.values()
        self.made_of_label[:] = sum(one.made_of_label for one in cells)
        self.new, self.from_bank = sum(one.new for one in cells), sum(one.from_bank for one in cells)
        self.bank_seconds = sum(one.bank_seconds for one in cells)

    def batches_from(self, state: ServerState, first: int) -> Iterator[list[Batch]]:
        """Do as `ServerImages.batches_from` for every cell."""
        later = (one.batches_from(self.state_of(cell, state), first) for cell, one in self.cells.items())
        for batches in zip(*later):
            yield [batch for of_cell in batches for batch in of_cell]

    def requested(self, state: ServerState) -> tuple[np.ndarray, np.ndarray]:
        """Do as `ServerImages.requested` for every cell."""
        states = [self.state_of(cell, state) for cell in self.cells]
        counts = [one.counts(its) for one, its in zip(self.cells.values(), states)]
        return np.array(counts), np.array([its.generated for its in states])

    def _batches(self, state: ServerState, counts: np.ndarray | None = None) -> list[Batch]:
        return [
            batch
            for cell, images in self.cells.items()
            for batch in images._batches(self.state_of(cell, state))
        ]


def _of_cell(images: ServerImages, cell: int) -> ServerImages:
    """Return the images of a cell."""
    one, config = copy(images), _making_in_every_round(images.config)
    generation = config.generation.model_copy(update={"seed": _image_seed(config, cell)})
    one.config = config.model_copy(update={"generation": generation})
    one.made_of_label = np.zeros_like(images.made_of_label)
    one._images, one._labels = [], []
    return one


def image_seeds(config: Config) -> list[int]:
    """Return the seed of the images of each server: of the edge servers that have clients, or of the one."""
    if config.time.generators != "edges":
        return [_image_seed(config, 0)]
    assert config.world is not None
    cells = np.unique(nearest(config.world, config.clients)[0])
    return [_image_seed(config, cell) for cell in cells.tolist()]


def _image_seed(config: Config, cell: int) -> int:
    """Return the seed of a cell's images; that of the first cell is the run's."""
    return cell_seed(config.seed if config.generation.seed is None else config.generation.seed, cell)


def _making_in_every_round(config: Config) -> Config:
    """Return the settings of edge servers, which do not wait for the cloud."""
    return config.model_copy(update={"time": config.time.model_copy(update={"cloud_every": 1})})


def cell_seed(seed: int, cell: int) -> int:
    """Return the seed of a cell's images and of its augmented model: `seed` itself in the first cell."""
    return streams.integer(seed, "cell", cell) if cell else seed
