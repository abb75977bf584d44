"""The radio channel between clients and base station: where clients are, how much of the power arrives, what rate that gives."""

import numpy as np

from genfl_mpi.util import streams

UP, DOWN = 0, 1  # direction, part of the key of the fading's draws


def distances(world, clients, round):
    """Metres from each client to the base station, float64 (clients,), before round `round` of which the first is 0.

    Clients begin uniformly in the cell and move straight on at one speed, each in its own direction, reflected by the
    border. A reflected path stays on chords of one length: with m the distance of the chord from the centre and s the way from
    its middle, r^2 = m^2 + s^2, and s grows with time modulo the chord. They stay uniform.
    """
    settings = world.channel
    rng = streams.generator(world.seed, "position")
    start = settings.radius_m * np.sqrt(rng.random(clients))
    if settings.speed_mps:
        angle = 2 * np.pi * rng.random(clients)  # of its direction against the radius
        apart, along = start * np.sin(angle), start * np.cos(angle)
        half = np.sqrt(np.maximum(settings.radius_m**2 - apart**2, 1e-12))
        along = (along + _way(settings, round) + half) % (2 * half) - half
        start = np.hypot(apart, along)
    return np.maximum(start, settings.nearest_m)


def _way(settings, round):
    """Metres that a client has gone before a round."""
    return settings.speed_mps * settings.round_seconds * round


def path_loss_db(distance, settings):
    """128.1 + 37.6 log10(d / km) dB by default (3GPP TR 36.814, urban macro cell at 2 GHz). settings: world.channel."""
    return settings.path_loss_db + settings.path_loss_slope_db * np.log10(distance / 1000)


def shadowing_db(world, clients, round):
    """Log-normal shadowing in dB, float64 (clients,): the same as long as a client stays. On its way it turns from one normal
    draw to the next within `decorrelation_m`, by cosine and sine, so that its variance stays the same."""
    settings = world.channel
    place, between = divmod(_way(settings, round) / settings.decorrelation_m, 1)
    one, other = (
        streams.generator(world.seed, "shadowing", place + step).standard_normal(clients) for step in (0, 1)
    )
    return settings.shadowing_db * (np.cos(np.pi / 2 * between) * one + np.sin(np.pi / 2 * between) * other)


def gains(world, clients, round, direction):
    """Share of the transmitted power that arrives, float64 (clients,), in the round and direction (UP or DOWN)."""
    loss = path_loss_db(distances(world, clients, round), world.channel) + shadowing_db(world, clients, round)
    gain = 10 ** (-loss / 10)
    if world.channel.fading == "rayleigh":
        gain *= streams.generator(world.seed, "fading", round, direction).exponential(size=clients)
    return gain


def noise(settings):
    """N0 in W/Hz. settings: world.channel."""
    return 10 ** (settings.noise_dbm_hz / 10 - 3)


def rate(bandwidth, power, gain, noise):
    """R = b log2(1 + p h / (N0 b)) in bit/s (Shannon). bandwidth: Hz; power: W; noise: W/Hz."""
    return bandwidth * np.log1p(power * gain / (noise * bandwidth)) / np.log(2)


def packet_error(bandwidth, power, gain, noise, waterfall):
    """1 - exp(-m N0 b / (p h)) (Xi et al. 2011; Chen et al. 2021). waterfall: m."""
    return -np.expm1(-waterfall * noise * bandwidth / (power * gain))


def transmissions(luck, error, most):
    """How often each message is sent until it arrives, float64 (K,): geometric in 1 - `error`, and `most` at most.

    luck: float64 (K,), uniform in [0, 1): P(more than k) = error^k.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # an error that is 0, or rounded to 1
        tries = np.clip(1 + np.floor(np.log1p(-luck) / np.log(error)), 1, most)
    return np.where(never_arrives(luck, error, most), most, tries)


def never_arrives(luck, error, most):
    """Whether each message is lost `most` times, bool (K,), with the same luck."""
    return 1 - luck <= error**most
