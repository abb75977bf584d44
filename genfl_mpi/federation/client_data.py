"""What a client trains on: its own samples, with the generated images that it has."""


class ClientData:
    """arrays: of `load_and_divide`; config: `Config`; about: the data set's `Description`; resident: the rank's `Resident` buffers;
    images: `ClientImages`."""

    def __init__(self, arrays, config, about, resident, images):
        self.arrays, self.config, self.about, self.resident, self.images = (
            arrays,
            config,
            about,
            resident,
            images,
        )

    def of(self, client):
        """Normalised float32 images (n, C, H, W) and int64 labels (n,), on the device."""
        own = self.resident.client_data(self.arrays, client, self.config, self.about)
        return self.images.beside(client, *own)
