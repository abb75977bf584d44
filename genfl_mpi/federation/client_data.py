"""The training data of a client: its own samples and the generated images that it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genfl_mpi.federation.robust import attacks

if TYPE_CHECKING:
    import numpy as np
    import torch

    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description
    from genfl_mpi.federation.client_images import ClientImages
    from genfl_mpi.federation.resident import Resident


class ClientData:
    """Give access to the clients' training data. arrays: of `load_and_divide`."""

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        config: Config,
        about: Description,
        resident: Resident,
        images: ClientImages,
    ) -> None:
        self.arrays, self.config, self.about = arrays, config, about
        self.resident, self.images = resident, images

    def load(self, client: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised float32 images (n, C, H, W) and int64 labels (n,), on the device."""
        own = self.resident.client_data(self.arrays, client, self.config, self.about)
        data = self.images.append_images(client, *own)
        is_attacker = self.arrays["attackers"][client]
        return attacks.poison(*data, client, self.config, self.about) if is_attacker else data
