"""Settings that had another name before version 0.3, so that an error message can give the new one."""

# A section stands for all settings in it.
RENAMED = {
    "bad_clients": "misbehaving_clients",
    "filling": "client_generation",
    "label_sharing.refusing": "label_sharing.refusal_rate",
    "laboratory": "hindsight",
    "selecting": "selection",
    "training.together": "training.clients_per_batch",
    "weighting": "rho",
    "world.acts": "world.enforced",
    "world.channel.most_tries": "world.channel.max_transmissions",
    "world.devices": "world.hardware",
    "world.devices.lowest_frequency_ghz": "world.hardware.min_frequency_ghz",
    "world.hardware.lowest_frequency_ghz": "world.hardware.min_frequency_ghz",
}


def new_name(key: str) -> str | None:
    """Return the present name of a dotted key that was renamed, or None."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if now := RENAMED.get(".".join(parts[:length])):
            return ".".join([now, *parts[length:]])
    return None
