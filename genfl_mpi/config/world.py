"""The simulated edge as trees of settings, each with its unit: a world, and what is paid in it. `edge/` computes with them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genfl_mpi.config.types import Count, Decibels, NonNegative, Positive, Range, Section, Seed, Share


class Hardware(Section):
    """The clients' hardware. A range is drawn from uniformly, once for each client."""

    frequency_ghz: Range = Field((1.0, 2.0), description="clock of the CPU when it trains, GHz")
    min_frequency_ghz: Positive = Field(0.3, description="slowest clock that a deadline lets it take, GHz")
    flops_per_cycle: Positive = Field(
        8.0,
        description="floating-point operations that the CPU makes in a cycle; cycles a sample follow from the model's measured FLOPs",
    )
    capacitance: Positive = Field(
        1e-28, description="effective switched capacitance: a cycle at clock f costs this times f^2, J/Hz^2"
    )
    transmit_watts: Range = Field(
        (0.01, 0.2), description="power of its transmitter, W, drawn uniformly in dBm: 10 to 23 dBm"
    )
    receive_watts: NonNegative = Field(0.5, description="power of its receiver, W")
    battery_kj: Range = Field((20.0, 60.0), description="charge when the run begins, kJ")
    accelerator_tflops: Positive = Field(
        2.0, description="operations a second of the accelerator that generates images, 10^12/s, as reached"
    )
    accelerator_watts: NonNegative = Field(5.0, description="power of that accelerator, W")


class Channel(Section):
    """One cell, with the base station in its middle."""

    radius_m: Positive = Field(500.0, description="radius of the cell, m; clients are uniform in it")
    nearest_m: Positive = Field(10.0, description="shortest distance to the base station, m")
    speed_mps: NonNegative = Field(
        0.0, description="speed of the clients, m/s: straight on, reflected by the cell's border"
    )
    round_seconds: Positive = Field(60.0, description="time between two rounds for which clients move, s")
    path_loss_db: Decibels = Field(128.1, description="path loss at a distance of 1 km, dB")
    path_loss_slope_db: Annotated[NonNegative, Field(le=100)] = Field(
        37.6, description="path loss of ten times the distance, dB"
    )
    shadowing_db: Annotated[NonNegative, Field(le=100)] = Field(
        8.0, description="standard deviation of the log-normal shadowing, dB"
    )
    decorrelation_m: Positive = Field(
        50.0, description="way after which a moving client's shadowing is another, m"
    )
    fading: Literal["rayleigh", "none"] = Field(
        "rayleigh", description="small-scale fading, drawn for each client and round"
    )
    noise_dbm_hz: Decibels = Field(-174.0, description="density of the noise, dBm/Hz")
    bandwidth_mhz: Positive = Field(
        20.0, description="bandwidth that the clients of a round share, MHz, upwards and downwards alike"
    )
    waterfall: NonNegative = Field(
        0.0,
        description="threshold m of the packet error 1 - exp(-m N0 b / (p h)); a lost message is sent again",
    )
    max_transmissions: Count = Field(
        10, description="how often a message is sent at most; the last time it is taken to arrive"
    )
    allocation: Literal["equal", "proportional", "min_max", "least_energy", "weighted"] = Field(
        "min_max", description="how the uplink's bandwidth is divided"
    )


class Server(Section):
    """The base station and the computer behind it."""

    transmit_watts: Positive = Field(20.0, description="power of the base station's transmitter, W")
    tflops: Positive = Field(
        100.0, description="operations a second of the server's GPU, 10^12/s, as reached"
    )
    watts: NonNegative = Field(400.0, description="power of that GPU at work, W")
    image_seconds: Positive | None = Field(
        None,
        description="measured time of an image on that GPU, s; none: the generator's FLOPs over its speed",
    )


class Helper(Section):
    """A computer on a wire beside the server, which generates in its place (placement P4)."""

    tflops: Positive = Field(20.0, description="operations a second of the helper's GPU, 10^12/s, as reached")
    watts: NonNegative = Field(150.0, description="power of that GPU at work, W")
    link_mbps: Positive = Field(1000.0, description="rate of the wire to the server, Mbit/s")
    image_seconds: Positive | None = Field(
        None,
        description="measured time of an image on that GPU, s; none: the generator's FLOPs over its speed",
    )


class Images(Section):
    """Generated images as they are sent."""

    side: Count | None = Field(None, description="pixels of a side; none: the data set's")
    bits_per_pixel: Positive = Field(
        24.0, description="bits of a pixel after coding: 24 is raw RGB, JPEG has 2 to 4"
    )
    delivery: Literal["broadcast", "unicast"] = Field(
        "broadcast", description="to all clients of a round at the worst one's rate, or to each at its own"
    )
    installed: bool = Field(
        False,
        description="whether clients have the generator already; else each that generates fetches it once",
    )


class World(Section):
    """A simulated edge: what time and energy the rounds of a run take in it."""

    seed: Seed = Field(1, description="seed of the world's draws")
    clients: Count | None = Field(None, description="clients that there are; none: as many as a run has")
    deadline_s: Positive | None = Field(
        None,
        description="seconds from a round's begin by which the clients must be done: allocation=least_energy needs it",
    )
    dropout: Share = Field(
        0.0,
        description="enforced=true: share of the clients that fall silent in a round, at a moment drawn uniformly from their way",
    )
    enforced: bool = Field(
        False,
        description="whether a run in this world goes without the clients that are later than deadline_s, whose message is lost max_transmissions times, whose battery is empty, or that drop out",
    )
    hardware: Hardware = Hardware()
    channel: Channel = Channel()
    server: Server = Server()
    helper: Helper = Helper()
    images: Images = Images()

    @model_validator(mode="after")
    def consistent(self):
        if self.dropout and not self.enforced:
            raise ValueError("dropout is for a world that acts on runs; set enforced=true")
        if self.enforced and self.channel.allocation == "least_energy":
            raise ValueError(
                "channel.allocation=least_energy lets nobody be late, and enforced=true is for who is; "
                "take another allocation"
            )
        return self


class Incentive(Section):
    """What the server pays for, in joules, at which a client values its energy; who would lose stays away."""

    base: NonNegative | None = Field(
        None,
        description="pay for a round, J: a client whose round takes more energy in the `world` cannot be selected in it; none: all take part",
    )
    price: NonNegative | None = Field(
        None,
        description="method=filled: pay for filling the whole gap of its labels, J, and in proportion for a share of it, which each client chooses as is best for it; none: all fill client_generation.share for nothing",
    )
    labels: NonNegative | None = Field(
        None,
        description="pay for telling one's labels, J; none: all tell them, but who is refusing by label_sharing",
    )
    label_cost: Range = Field(
        (1.0, 10.0), description="what telling them costs a client in privacy, J, drawn uniformly for each"
    )
