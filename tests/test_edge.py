"""The simulated edge: worked by hand, checked against general solvers, and what is refused."""

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import lambertw

from genfl_mpi.config import loading
from genfl_mpi.config.world import Channel, Images, World
from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.edge import bandwidth, channel, hardware
from genfl_mpi.edge.placements import PLACEMENTS, draw_cohorts, price_run, scale_images
from genfl_mpi.edge.rounds import Cohort, Work, draw_cohort, price_round
from genfl_mpi.edge.trace import Trace, image_bytes, label_value
from genfl_mpi.util.errors import UserError


def uplink(seed=0, clients=6, **changes):
    rng = np.random.default_rng(seed)
    power = rng.uniform(0.01, 0.2, clients)
    reach = power * 10 ** rng.uniform(-12, -9, clients) / 10**-20.4
    return bandwidth.Uplink(8e6, rng.uniform(1, 5, clients), power, reach, 20e6, **changes)


def finish(link, division):
    return (link.ready + bandwidth.seconds(link, division)).max()


def test_path_loss_and_rate_by_hand():
    # 100 m: 128.1 - 37.6 = 90.5 dB. 1 MHz, 0.1 W: the noise is 10^-20.4 W/Hz 10^6 Hz, the signal 10^-1
    # 10^-9.05 W, which is 43.5 dB above the noise: log2(1 + 10^4.35) = 14.450... bits per Hz and second.
    assert channel.path_loss_db(100.0, Channel()) == pytest.approx(90.5)
    rate = channel.rate(1e6, 0.1, 10**-9.05, channel.noise(Channel()))
    assert rate == pytest.approx(1e6 * np.log2(1 + 10**4.35)) and rate == pytest.approx(14.4504e6, rel=1e-4)


def test_computing_by_hand():
    # 10^9 cycles at 1.5 GHz: 2/3 s, and 1e-28 10^9 2.25e18 = 0.225 J.
    assert hardware.computing_seconds(1e9, 1.5e9) == pytest.approx(2 / 3)
    assert hardware.computing_joules(1e9, 1.5e9, 1e-28) == pytest.approx(0.225)
    # With 1 s left, 1 GHz is enough. With 0.5 s it needs 2 GHz, above its maximum; with 10 s its minimum, 0.3
    # GHz.
    assert hardware.slowest_frequency(np.full(4, 1e9), np.array([1, 0.5, 10, -1]), 0.3e9, 1.5e9).tolist() == [
        1e9,
        1.5e9,
        0.3e9,
        1.5e9,
    ]


def test_packet_error_and_transmissions_by_hand():
    # m N0 b / (p h) = ln 2: every other message is lost.
    error = channel.packet_error(1.0, 1.0, 1.0, np.log(2), 1.0)
    assert error == pytest.approx(0.5)
    luck = np.array([0, 0.49, 0.51, 0.74, 0.76, 0.999999])
    assert channel.transmissions(luck, np.full(6, error), 10).tolist() == [1, 1, 2, 2, 3, 10]
    assert channel.transmissions(luck, np.zeros(6), 10).tolist() == [1] * 6
    # A hopeless channel, whose error is rounded to 1.
    assert (
        channel.transmissions(luck, np.ones(6), 10).tolist() == [10] * 6
        and channel.never_arrives(luck, np.ones(6), 10).all()
    )
    assert channel.packet_error(1e9, 1.0, 1.0, 1.0, 1.0) == 1


def test_a_round_by_hand():
    """Two clients at 100 and 1000 m without fading, an equal division, and a server that generates."""
    world = World(
        channel={"allocation": "equal", "fading": "none"},
        hardware={"flops_per_cycle": 1},
        server={"image_seconds": 3.0, "tflops": 1.0},
    )
    gain = np.array([10**-9.05, 10**-12.81])
    cohort = Cohort(np.array([4, 7]), np.array([0.1, 0.2]), np.array([1e9, 2e9]), gain, gain, np.zeros(2))
    priced = price_round(
        world,
        cohort,
        Work(flops=np.array([2e9, 2e9]), weights_bytes=1e6, server_images=10, augment_flops=5e12),
    )
    up = 8e6 / (10e6 * np.log2(1 + np.array([0.1, 0.2]) * gain / (10**-20.4 * 10e6)))
    down = 8e6 / (20e6 * np.log2(1 + 20 * gain[1] / (10**-20.4 * 20e6)))
    assert priced.client_seconds["up"] == pytest.approx(up) and priced.client_seconds[
        "down"
    ] == pytest.approx([down, down])
    assert priced.client_seconds["compute"] == pytest.approx([2, 1])
    assert priced.client_joules["up"] == pytest.approx(np.array([0.1, 0.2]) * up)
    assert priced.client_joules["compute"] == pytest.approx([1e-28 * 2e9 * 1e18, 1e-28 * 2e9 * 4e18])
    assert priced.server_seconds["generate"] == 30 and priced.server_seconds["augment"] == 5
    assert priced.server_joules["generate"] == 400 * 30 and priced.server_joules["send"] == pytest.approx(
        20 * down
    )
    # The server's 30 + 5 s outlast the clients. Then it adds three models of 250,000 weights, two operations
    # each.
    assert priced.seconds == pytest.approx(35 + 2 * 3 * 250_000 / 1e12)
    assert priced.bytes == {"down": 1e6, "up": 2e6, "wire": 0}
    slow = price_round(world, cohort, Work(flops=np.array([80e9, 2e9]), weights_bytes=1e6, server_images=10))
    assert slow.seconds == pytest.approx(down + 80 + up[0], rel=1e-6)


def test_lamberts_function_against_scipy():
    G = np.concatenate([np.logspace(-300, -1, 1000), np.linspace(0.1, 0.99, 1000)])
    assert bandwidth.minus_lambert(G) == pytest.approx(-lambertw(-G * np.exp(-G), -1).real, rel=1e-9)


def test_the_needed_bandwidth_gives_the_wanted_time():
    for seed in range(20):
        link = uplink(seed)
        for later in (1e-6, 0.01, 1, 1e4):
            T = bandwidth._infinite_band_finish(link).max() * (1 + later)
            needed = bandwidth.needed_bandwidth(link, T)
            assert link.ready + bandwidth.seconds(link, needed) == pytest.approx(np.full(6, T), rel=1e-7)
    assert np.isinf(bandwidth.needed_bandwidth(link, link.ready.min() / 2)).all()


@pytest.mark.parametrize("seed", range(5))
def test_min_max_against_a_general_solver(seed):
    link = uplink(seed, clients=5)
    ours = bandwidth.min_max(link)
    assert ours.sum() == pytest.approx(link.total)
    assert link.ready + bandwidth.seconds(link, ours) == pytest.approx(
        np.full(5, finish(link, ours)), rel=1e-8
    )
    # Minimise T subject to t_n(b_n) <= T and sum b_n = B, over shares of B and T as a multiple of ours.
    constraints = [
        {
            "type": "ineq",
            "fun": lambda x: (
                x[-1] - (link.ready + bandwidth.seconds(link, x[:-1] * link.total)) / finish(link, ours)
            ),
        },
        {"type": "eq", "fun": lambda x: x[:-1].sum() - 1},
    ]
    found = minimize(
        lambda x: x[-1],
        [*np.full(5, 0.2), 2.0],
        constraints=constraints,
        bounds=[(1e-6, 1)] * 5 + [(0, None)],
        # A smaller tolerance is below the rounding of the solver's numerical derivatives. Success of its last
        # line search would then depend on the order of BLAS sums, and so on the number of threads.
        options={"maxiter": 500, "ftol": 1e-9},
    )
    assert found.success and found.x[-1] == pytest.approx(1, rel=1e-6)
    assert found.x[:-1] * link.total == pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_least_energy_against_a_general_solver(seed):
    link = uplink(seed, clients=4)
    link = link._replace(deadline=1.2 * finish(link, bandwidth.min_max(link)))
    ours = bandwidth.least_energy(link)

    def energy(division):
        return (link.power * bandwidth.seconds(link, division)).sum()

    assert ours.sum() == pytest.approx(link.total) and finish(link, ours) <= link.deadline * (1 + 1e-9)
    constraints = [
        {
            "type": "ineq",
            "fun": lambda x: 1 - (link.ready + bandwidth.seconds(link, x * link.total)) / link.deadline,
        },
        {"type": "eq", "fun": lambda x: x.sum() - 1},
    ]
    found = minimize(
        lambda x: energy(x * link.total) / energy(ours),
        bandwidth.min_max(link) / link.total,
        constraints=constraints,
        bounds=[(1e-6, 1)] * 4,
        options={"maxiter": 500, "ftol": 1e-13},
    )
    assert found.fun == pytest.approx(1, rel=1e-5) and found.fun > 1 - 1e-6


def test_divisions_of_like_clients_are_equal():
    link = bandwidth.Uplink(
        8e6, np.full(4, 2.0), np.full(4, 0.1), np.full(4, 1e9), 20e6, 10.0, np.full(4, 0.5)
    )
    for division in bandwidth.ALLOCATIONS.values():
        assert division(link) == pytest.approx(np.full(4, 5e6))


def test_divisions_favour_what_they_say():
    link = uplink(1, value=np.array([1, 0.5, 0.2, 0.05, 0, 1.0]))
    weighted = bandwidth.weighted(link)
    assert weighted / weighted[0] == pytest.approx([1, 0.5, 0.2, 0.1, 0.1, 1])
    spread = {
        name: np.ptp(bandwidth.seconds(link, bandwidth.ALLOCATIONS[name](link)))
        for name in ("equal", "proportional")
    }
    assert spread["proportional"] < spread["equal"]
    assert finish(link, bandwidth.min_max(link)) < min(
        finish(link, bandwidth.ALLOCATIONS[name](link)) for name in ("equal", "proportional")
    )


def test_one_client_has_the_whole_band():
    link = uplink(clients=1)
    assert bandwidth.min_max(link) == pytest.approx([20e6])
    best = minimize_scalar(lambda b: finish(link, np.array([b])), bounds=(1, 20e6), method="bounded").x
    assert best == pytest.approx(20e6, rel=1e-4)


def test_clients_stay_uniform_in_the_cell_while_they_move():
    world = World(channel={"speed_mps": 3.0, "nearest_m": 1e-3})
    before, after, later = (channel.distances(world, 200_000, round) for round in (0, 1, 1000))
    assert np.abs(before - after).max() <= 180 + 1e-6 and np.abs(before - after).mean() > 10  # 3 m/s for 60 s
    for distance in (before, after, later):
        assert distance.max() <= 500 + 1e-6 and (distance**2).mean() == pytest.approx(500**2 / 2, rel=0.01)
    still = World()
    assert np.array_equal(
        channel.gains(still, 9, 0, channel.UP) / channel.gains(still, 9, 0, channel.UP), np.ones(9)
    )
    assert np.array_equal(channel.distances(still, 9, 0), channel.distances(still, 9, 7))


def test_shadowing_and_fading_have_their_moments():
    for world, round in (
        (World(), 3),
        (World(channel={"speed_mps": 0.5}), 4),
    ):  # the second between two draws
        shadowing = channel.shadowing_db(world, 200_000, round)
        assert shadowing.mean() == pytest.approx(0, abs=0.1) and shadowing.std() == pytest.approx(8, rel=0.01)
    faded = channel.gains(World(), 200_000, 2, channel.UP) / channel.gains(
        World(channel={"fading": "none"}), 200_000, 2, channel.UP
    )
    assert faded.mean() == pytest.approx(1, rel=0.01) and (faded < np.log(2)).mean() == pytest.approx(
        0.5, abs=0.01
    )


def trace(**changes):
    rounds, histograms = 4, np.array([[5, 5, 0, 0], [0, 3, 3, 0], [1, 1, 1, 1], [0, 0, 0, 9], [9, 0, 0, 0]])
    cohort = [np.array([0, 2, 3]), np.array([1, 2, 4]), np.array([0, 3, 4]), np.array([0, 1, 2])]
    values = {
        "clients": 5,
        "cohorts": cohort,
        "samples": [histograms[one].sum(1) for one in cohort],
        "epochs": [np.full(3, 5)] * rounds,
        "sample_flops": 1e7,
        "augmented_epochs": 5,
        "weights_bytes": 4e6,
        "new_images": np.full(rounds, 40),
        "pool": 40 * np.arange(1, rounds + 1),
        "shape": (3, 32, 32),
        "image_flops": 3e13,
        "generator_bytes": 2e9,
        "missing": (histograms == 0).mean(1),
        "value": label_value(histograms, earth_movers_distance(histograms)),
    }
    return Trace(**(values | changes))


def spent(one):
    return one.seconds.sum(), one.joules["clients"].sum(), one.bytes["down"].sum()


def test_placements_do_what_they_say():
    world, run = World(), trace()
    met = draw_cohorts(run, world)
    bills = {name: price_run(run, world, met, name) for name in PLACEMENTS}
    downs = {name: one.bytes["down"].sum() for name, one in bills.items()}
    # The server sends the whole cohort the images that the client with the fewest lacks: all 40; all 80, for
    # client 1; 120 less the 40 that clients 0 and 3 have from the first round; 160 less the 80 of the second.
    assert downs["P2"] - downs["P0"] == 3072 * (40 + 80 + 80 + 80)
    # A client fetches the generator once; the third client lacks no label and never does.
    assert downs["P3"] - downs["P0"] == 4 * 2e9
    assert (
        bills["P3"].joules["server"].sum() > bills["P0"].joules["server"].sum()
        and bills["P3"].prices[0].server_seconds["generate"] == 0
    )
    # Client 0 lacks half of the labels, client 3 three quarters: 20 and 30 images in round 1, at 15 s each.
    assert bills["P3"].prices[0].client_seconds["make"].tolist() == [300, 0, 450]
    assert bills["P3"].prices[2].client_seconds["make"][:2].tolist() == [600, 900]
    assert bills["P4"].bytes["wire"].sum() == 160 * 3072 and bills["P4"].joules[
        "helper"
    ].sum() == pytest.approx(160 * 1.5 * 150)
    assert bills["P1"].joules["server"].sum() - bills["P0"].joules["server"].sum() == pytest.approx(
        400 * (160 * 0.3 + 5 * 1e7 * 400 / 1e14)
    )
    assert bills["P1"].joules["clients"].sum() == bills["P0"].joules["clients"].sum()
    for one in bills.values():
        assert one.client_joules.sum() == pytest.approx(one.joules["clients"].sum())
        assert one.seconds.sum() >= bills["P0"].seconds.sum()


def test_without_images_all_placements_are_one():
    run = trace(new_images=np.zeros(4), pool=np.zeros(4))
    met = draw_cohorts(run, World())
    assert len({spent(price_run(run, World(), met, name)) for name in PLACEMENTS}) == 1


def test_the_hybrid_is_one_of_its_halves_at_the_ends():
    world = World(images={"delivery": "unicast", "installed": True})
    for size, alike in ((1e-6, 0), (1e9, 1)):
        run = scale_images(trace(), size=size)
        met = draw_cohorts(run, world)
        made = sum(price.client_seconds["make"].sum() for price in price_run(run, world, met, "P5").prices)
        assert (made > 0) == alike
    assert spent(price_run(run, world, met, "P5"))[:2] == pytest.approx(
        spent(price_run(run, world, met, "P3"))[:2]
    )


def test_images_as_they_are_sent():
    assert image_bytes(trace(), Images()) == 3072 and image_bytes(trace(shape=(1, 28, 28)), Images()) == 784
    assert image_bytes(trace(), Images(side=512, bits_per_pixel=2)) == 512 * 512 / 4


def test_the_value_of_labels():
    shared = np.array([[2, 2, 2, 2], [8, 0, 0, 0], [0, 0, 0, 0]])
    value = label_value(shared, earth_movers_distance(shared))
    # The population is (10, 2, 2, 2) / 16: EMD 0.75 for the first, and for the second 0.75 too.
    assert value == pytest.approx([1 - 0.375, 0.25 * (1 - 0.375), 0])


def test_a_world_is_a_function_of_its_settings():
    one, two, other = (
        draw_cohort(World(seed=seed), hardware.draw_hardware(World(seed=seed), 50), 3, np.array([5, 9]))
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, two)) and not np.array_equal(one.up, other.up)
    apart = draw_cohort(
        World(), hardware.draw_hardware(World(), 50), 3, np.array([9])
    )  # a client's draws do not depend on the others
    assert apart.up[0] == one.up[1] and apart.power[0] == one.power[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hardware: {transmit_watts: [-0.1, 0.2]}",
            "hardware.transmit_watts= needs a number above 0",
        ),
        ("server: {watts: -1}", "server.watts= needs a number of at least 0"),
        ("hardware: {frequency_ghz: [2, 1]}", "must be the smallest value followed by the largest"),
        ("channel: {radius: 3}", "unknown key channel.radius; did you mean channel.radius_m?"),
        ("channel: {allocation: fair}", "channel.allocation= needs one of "),
        ("- 1", "must be a mapping"),
    ],
)
def test_wrong_worlds_are_refused_in_words(text, message, tmp_path):
    (tmp_path / "world.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        loading.load_world(tmp_path / "world.yaml")
    assert message in str(caught.value) and "world.yaml: " in str(caught.value)


def test_what_cannot_be_is_refused():
    run = trace()
    with pytest.raises(UserError, match="the world has 4 clients, but the run has 5"):
        draw_cohorts(run, World(clients=4))
    for deadline, message in (
        (None, "needs deadline_s"),
        (0.5, r"deadline_s=0.5 cannot be met: the clients of a round finish after .* s at the earliest"),
    ):
        world = World(deadline_s=deadline, channel={"allocation": "least_energy"})
        with pytest.raises(UserError, match=message):
            price_run(run, world, draw_cohorts(run, world))


def test_a_deadline_slows_clocks_and_saves_energy():
    run = trace(sample_flops=1e10)
    fast = World(channel={"allocation": "min_max", "fading": "none"})
    slow = World(channel={"allocation": "least_energy", "fading": "none"}, deadline_s=2000.0)
    quick, patient = (price_run(run, world, draw_cohorts(run, world)) for world in (fast, slow))
    assert (
        patient.joules["clients"].sum() < quick.joules["clients"].sum()
        and quick.seconds.max() < patient.seconds.max() <= 2000 + 1
    )


def test_the_shipped_worlds_can_be_read():
    from pathlib import Path

    files = sorted(Path(__file__).parents[1].glob("configs/worlds/*.yaml"))
    assert [file.stem for file in files] == ["campus", "city", "highway", "rural"]
    assert len({loading.load_world(file) for file in files}) == 4
