"""Settings of the simulated edge and of the incentives paid in it, with units. `edge/` uses them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genfl_mpi.config.types import (
    Count,
    Decibels,
    Flag,
    NonNegative,
    Positive,
    Range,
    Section,
    Seed,
    Share,
    at_most,
)


class Hardware(Section):
    """The clients' hardware. Each client draws its value of a range uniformly."""

    frequency_ghz: Range = Field((1.0, 2.0), description="CPU clock frequency during training, GHz")
    min_frequency_ghz: Positive = Field(
        0.3, description="lowest clock frequency that a client may choose to meet a deadline, GHz"
    )
    flops_per_cycle: Positive = Field(
        8.0,
        description="floating-point operations per CPU cycle; "
        "the cycles per sample follow from the model's measured FLOPs",
    )
    capacitance: Positive = Field(
        1e-28,
        description="effective switched capacitance, J/Hz^2: a CPU cycle at clock frequency f takes this "
        "times f^2",
    )
    transmit_watts: Range = Field(
        (0.01, 0.2), description="transmit power, W; drawn uniformly in dBm, by default 10 to 23 dBm"
    )
    receive_watts: NonNegative = Field(0.5, description="power of the receiver, W")
    battery_kj: Range = Field((20.0, 60.0), description="battery charge at the start of the run, kJ")
    accelerator_tflops: Positive = Field(
        2.0, description="sustained speed of the accelerator that generates images, 10^12 operations/s"
    )
    accelerator_watts: NonNegative = Field(5.0, description="power of that accelerator, W")


class Channel(Section):
    """The radio channel in a cell around the base station."""

    radius_m: Positive = Field(500.0, description="radius of the cell, m; clients are placed uniformly in it")
    nearest_m: Positive = Field(10.0, description="minimum distance to the base station, m")
    speed_mps: NonNegative = Field(
        0.0,
        description="speed of the clients, m/s; they move straight on and are reflected at the cell's edge",
    )
    round_seconds: Positive = Field(60.0, description="time that clients move between two rounds, s")
    path_loss_db: Decibels = Field(128.1, description="path loss at a distance of 1 km, dB")
    path_loss_slope_db: Annotated[NonNegative, Field(le=100)] = Field(
        37.6, description="additional path loss per tenfold distance, dB"
    )
    shadowing_db: Annotated[NonNegative, Field(le=100)] = Field(
        8.0, description="standard deviation of the log-normal shadowing, dB"
    )
    decorrelation_m: Positive = Field(
        50.0, description="decorrelation distance of a moving client's shadowing, m"
    )
    fading: Literal["rayleigh", "none"] = Field(
        "rayleigh", description="small-scale fading; rayleigh: drawn per client and round; none: no fading"
    )
    noise_dbm_hz: Decibels = Field(-174.0, description="noise power spectral density, dBm/Hz")
    bandwidth_mhz: Positive = Field(
        20.0,
        description="bandwidth shared by the clients of a round, MHz; the same for uplink and downlink",
    )
    waterfall: NonNegative = Field(
        0.0,
        description="threshold m of the packet error rate 1 - exp(-m N0 b / (p h)); "
        "a lost message is retransmitted",
    )
    max_transmissions: Count = Field(
        10,
        description="maximum number of transmissions of a message; the last one counts as received "
        "unless enforced=true",
    )
    allocation: Literal["equal", "proportional", "min_max", "least_energy", "weighted"] = Field(
        "min_max", description="how the uplink bandwidth is divided among the clients"
    )


class Road(Section):
    """A ring road of cells on which the clients' vehicles drive, each at its own speed."""

    coverage_m: Positive | None = Field(
        None,
        description="length of the road in a cell, m; null: clients stay in the cell of `channel`, and never "
        "leave",
    )
    lateral_m: NonNegative = Field(20.0, description="distance of the base stations from the road, m")
    speed_mps: Range = Field(
        (15.0, 35.0), description="speed of the vehicles, m/s, drawn uniformly per client"
    )


class Server(Section):
    """The base station and the computer behind it."""

    transmit_watts: Positive = Field(20.0, description="transmit power of the base station, W")
    tflops: Positive = Field(100.0, description="sustained speed of the server's GPU, 10^12 operations/s")
    watts: NonNegative = Field(400.0, description="power of that GPU under load, W")
    image_seconds: Positive | None = Field(
        None,
        description="measured time per generated image on that GPU, s; null: the generator's FLOPs over "
        "tflops",
    )


class EdgeServer(Server):
    """The base station of each cell with the computer beside it, and its wire to the cloud: tiers."""

    tflops: Positive = Field(25.0, description="sustained speed of an edge server's GPU, 10^12 operations/s")
    watts: NonNegative = Field(100.0, description="power of that GPU under load, W")
    link_mbps: Positive = Field(
        1000.0, description="data rate of an edge server's wire to the cloud, in each direction, Mbit/s"
    )


class Helper(Section):
    """A computer that generates for the server, wired to it (placement P4)."""

    tflops: Positive = Field(20.0, description="sustained speed of the helper's GPU, 10^12 operations/s")
    watts: NonNegative = Field(150.0, description="power of that GPU under load, W")
    link_mbps: Positive = Field(1000.0, description="data rate of the wire to the server, Mbit/s")
    image_seconds: Positive | None = Field(
        None,
        description="measured time per generated image on that GPU, s; null: the generator's FLOPs over "
        "tflops",
    )


class Images(Section):
    """How generated images are transmitted."""

    side: Count | None = Field(None, description="side length of an image, pixels; null: the data set's")
    bits_per_pixel: Positive = Field(
        24.0, description="bits per pixel after coding: 24 for raw RGB, 2 to 4 for JPEG"
    )
    delivery: Literal["broadcast", "unicast"] = Field(
        "broadcast",
        description="to whom; broadcast: to all clients of a round at the rate of the slowest link; "
        "unicast: to each client at its own rate",
    )
    installed: Flag = Field(
        False,
        description="whether clients already have the generator; otherwise each client that generates "
        "downloads it once",
    )


class World(Section):
    """A simulated edge, which determines the time and energy of a run's rounds."""

    seed: Seed = Field(1, description="seed of the world's random draws")
    clients: Count | None = Field(
        None, description="number of clients in the world; null: the number of clients of the run"
    )
    deadline_s: Positive | None = Field(
        None,
        description="seconds from the start of a round until the clients must be done; "
        "required by allocation=least_energy",
    )
    dropout: Share = Field(
        0.0,
        description="with enforced=true: share of the clients that drop out of a round, "
        "at a uniformly drawn moment of their work",
    )
    enforced: Flag = Field(
        False,
        description="whether a run in this world excludes clients that miss deadline_s or leave their cell, "
        "whose message is lost max_transmissions times, whose battery is empty, or that drop out",
    )
    cells: Annotated[Count, at_most(256, "every rank keeps a model and a sum of models for each cell")] = (
        Field(
            1,
            description="with time.driver=tiers: cells with an edge server each, spread evenly over the area "
            "of radius channel.radius_m; a client belongs to the nearest",
        )
    )
    hardware: Hardware = Hardware()
    channel: Channel = Channel()
    road: Road = Road()
    server: Server = Server()
    edge: EdgeServer = EdgeServer()
    helper: Helper = Helper()
    images: Images = Images()

    @model_validator(mode="after")
    def check_cells(self) -> "World":
        """Refuse clients that change cells."""
        moving = {
            "channel.speed_mps": self.channel.speed_mps > 0,
            "road.coverage_m": self.road.coverage_m is not None,
        }
        if self.cells > 1 and any(moving.values()):
            raise ValueError(
                f"world.{next(name for name in moving if moving[name])} lets clients move, and with "
                "world.cells above 1 they stay in their cells; remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def check_enforced(self) -> "World":
        """Refuse settings that contradict `enforced`."""
        if self.dropout and not self.enforced:
            raise ValueError("world.dropout has an effect only with world.enforced=true; set both")
        if self.enforced and self.channel.allocation == "least_energy":
            raise ValueError(
                "world.channel.allocation=least_energy makes every client meet the deadline, so that "
                "world.enforced=true could exclude none; choose another allocation"
            )
        return self


class Incentive(Section):
    """Payments by the server in joules, which clients value like energy. Clients that would lose decline."""

    base: NonNegative | None = Field(
        None,
        description="payment for participating in a round, J: a client whose round takes more energy in the "
        "`world` cannot be selected for it; null: all clients participate",
    )
    price: NonNegative | None = Field(
        None,
        description="with method=filled: payment for filling the whole gap of a client's labels, J, and in "
        "proportion for a share of it, which each client chooses to maximize its profit; "
        "null: all clients fill client_generation.share unpaid",
    )
    labels: NonNegative | None = Field(
        None,
        description="payment for sharing label statistics, J; null: all clients share them, except the "
        "share label_sharing.refusal_rate",
    )
    label_cost: Range = Field(
        (1.0, 10.0),
        description="a client's privacy cost of sharing label statistics, J, drawn uniformly per client",
    )
