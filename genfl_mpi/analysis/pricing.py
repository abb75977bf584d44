"""Price finished runs in simulated worlds, in seconds, joules and bytes, without training: `price`."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.analysis import cost_figures, tables
from genfl_mpi.analysis.summary import METHOD_ORDER, distinguish, last_evaluated
from genfl_mpi.config import loading as configuration
from genfl_mpi.config.composition import METHOD_TITLES
from genfl_mpi.config.world import World
from genfl_mpi.edge.attendance import AGGREGATED, NOT_FINITE, VOID
from genfl_mpi.edge.placements import PLACEMENTS, Bill, draw_cohorts, price_run, scale_images
from genfl_mpi.edge.trace import Trace, image_bytes
from genfl_mpi.federation import workload
from genfl_mpi.results import reader
from genfl_mpi.util import plotting
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import WIDTH, scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from genfl_mpi.config.settings import Config

    Curves = dict[str, dict[str, dict[str, np.ndarray]]]


REPLACEABLE = (
    "model.",
    "training.epochs",
    "augmented.epochs",
    "generation.checkpoint",
    "generation.steps",
    "generation.guidance",
    "generation.size",
)
SERVER_PLACEMENTS = ("P1", "P2")  # which generate at the server, at world.server.image_seconds if that is set
FACTORS = np.logspace(-3, 5, 17)  # on number and size of images, to search break-even points
COMPARED = (("P1", "P2"), ("P1", "P3"), ("P2", "P3"), ("P1", "P4"))  # placements
COST_UNITS = ("s", "J", "J", "B", "B")
MEASURES = {"seconds": "s", "client energy": "J", "total energy": "J", "air traffic": "B"}


@dataclass(frozen=True)
class Run:
    """What pricing needs of a results file.

    generates: whether clients trained and one server generated images. accuracy: float64 (rounds,). world:
    the run's own, or None. status: of each round, the outcome for its clients, STATUS (K,). settings: what
    distinguishes it from the other priced runs, besides method and seed. clock: float64 (rounds,), end of
    each round on the virtual clock of an asynchronous run, s; otherwise None. uncounted: the generator if its
    FLOPs and bytes are unknown, and therefore 0 in the trace; otherwise empty.
    """

    name: str
    method: str
    generates: bool
    accuracy: np.ndarray
    trace: Trace
    world: World | None
    status: list[np.ndarray]
    settings: str = ""
    clock: np.ndarray | None = None
    uncounted: str = ""

    @property
    def title(self) -> str:
        return ": ".join(filter(None, (self.name, self.settings)))


@dataclass(frozen=True)
class Priced:
    """A `Run` in a world."""

    run: Run
    world: str
    bill: Bill

    def cumulative(self, measure: str) -> np.ndarray:
        """Return the cumulative cost after each round, float64 (rounds,). measure: one of MEASURES."""
        return np.cumsum(_totals(self.bill)[measure])


def _totals(priced: Bill) -> dict[str, np.ndarray]:
    """Return the MEASURES of a bill, in their units, float64 (rounds,) each."""
    return {
        "seconds": priced.seconds,
        "client energy": priced.joules["clients"],
        "total energy": sum(priced.joules.values()),
        "air traffic": priced.bytes["down"] + priced.bytes["up"],
    }


def command(options: Namespace) -> Iterator[str]:
    """Yield the lines of the `price` command. options: its parsed arguments. Raises UserError."""
    if options.target is not None and not 0 < options.target <= 1:
        raise UserError(
            f"--target {options.target:g}: the target is a test accuracy as a share in (0, 1], for example "
            "--target 0.5"
        )
    overrides = [one for one in options.results if "=" in one and not Path(one).exists()]
    paths = reader.find_results([one for one in options.results if one not in overrides])
    runs = read_all(paths, overrides)
    worlds_of = worlds_for(runs, options.world, overrides)
    priced = in_worlds(runs, worlds_of)
    output = Path(options.output or paths[0].parent / "price.png")
    for name, world in {name: world for worlds in worlds_of for name, world in worlds.items()}.items():
        yield from textwrap.wrap(f"world {name}: {describe_world(world)}", WIDTH, subsequent_indent="  ")
    if not options.world and not overrides and any(run.world is None for run in runs):
        yield "  (another one: --world FILE, as in configs/worlds)"
    yield from _uncounted(runs, worlds_of)
    yield ""
    yield from table(priced, options.target)
    plotting.save(figure(priced), output)
    yield f"\naccuracy against costs: {output}"
    if options.csv:
        tables.write_csv(options.csv, rows(priced))
        yield f"costs by client, round and entity: {options.csv}"
    if options.placements:
        yield from _placements(runs, worlds_of, output)


def describe_world(world: World) -> str:
    """Return what decides most of the costs in a world, in one line."""
    hardware, channel, server = world.hardware, world.channel, world.server
    low, high = hardware.frequency_ghz
    clients = f"{low:g} GHz" if low == high else f"{low:g} to {high:g} GHz"
    place = (
        f"vehicles in road cells of {world.road.coverage_m:g} m"
        if world.road.coverage_m
        else f"cell of {channel.radius_m:g} m radius"
    )
    speed = f"{server.image_seconds:g} s per image" if server.image_seconds else f"{server.tflops:g} TFLOP/s"
    return (
        f"{place}, {channel.bandwidth_mhz:g} MHz shared by a cohort; client CPUs of {clients}, "
        f"server GPU of {speed} at {server.watts:g} W"
    )


def _uncounted(runs: Sequence[Run], worlds_of: Sequence[dict[str, World]]) -> Iterator[str]:
    """Yield what is not counted of the runs' generators, and how to give it, in WIDTH columns."""
    generators = dict.fromkeys(
        run.uncounted
        for run, worlds in zip(runs, worlds_of)
        if run.uncounted
        and not (
            run.trace.placement in SERVER_PLACEMENTS
            and all(world.server.image_seconds for world in worlds.values())
        )
    )
    for name in generators:
        yield from textwrap.wrap(
            f"not counted: generating images, as the cost of {name} is unknown; set server.image_seconds (s "
            "per image) in a world file, or price another generator: generation.checkpoint=NAME",
            WIDTH,
            subsequent_indent="  ",
            break_on_hyphens=False,
        )


def worlds_for(
    runs: Sequence[Run], files: Sequence[str], overrides: Sequence[str] = ()
) -> list[dict[str, World]]:
    """Return the worlds of each run, {name: `World`}: those of the YAML files, or the default world.

    A run that its world acted on is priced in this world. Raises UserError if another world, or other
    settings (`overrides`), are given for such a run.
    """
    worlds = {Path(file).stem: configuration.load_world(file) for file in files} or {
        "default": World.model_validate({})
    }
    if enforced := next((name for name, world in worlds.items() if world.enforced), None):
        raise UserError(
            f"world {enforced} acts on runs (enforced=true), and these would differ in it; make new runs "
            "with world=FILE, or price these with enforced=false"
        )
    if cellular := next((name for name, world in worlds.items() if world.cells > 1), None):
        raise UserError(
            f"world {cellular} has cells, in which only runs with time.driver=tiers are priced, and these in "
            "their own world; remove its `cells`"
        )
    for run in runs:
        if run.world is not None and (files or overrides):
            raise UserError(
                f"{run.name}: a world acted on this run: its times and energies decided about clients or "
                "weights, and the run would differ in another world; price it in its own, without --world "
                "and key=value"
            )
    return [worlds if run.world is None else {"own": run.world} for run in runs]


def in_worlds(runs: Sequence[Run], worlds_of: Sequence[dict[str, World]]) -> list[Priced]:
    """Price each run in each of its worlds. Raises UserError. worlds_of: from `worlds_for`."""
    priced = [
        Priced(run, name, _bill(run, world))
        for run, worlds in zip(runs, worlds_of)
        for name, world in worlds.items()
    ]
    for one in priced:
        if any((then != now).any() for then, now in zip(one.run.status, one.bill.status)):
            raise UserError(
                f"{one.run.name}: other clients participated than in its world: a fork of a run in another "
                "world, or in none, cannot be priced"
            )
    return priced


def _bill(run: Run, world: World) -> Bill:
    """Price a run in a world. The rounds of an asynchronous run end when its virtual clock says so."""
    bill = price_run(run.trace, world, draw_cohorts(run.trace, world))
    return bill if run.clock is None else replace(bill, seconds=np.diff(run.clock, prepend=0.0))


def figure(priced: Sequence[Priced]) -> Figure:
    """Draw accuracy against costs."""
    return cost_figures.accuracy(
        [
            (
                one.run.method,
                one.run.settings,
                one.world,
                one.run.accuracy,
                {measure: one.cumulative(measure) for measure in MEASURES},
            )
            for one in priced
        ],
        MEASURES,
    )


def _placements(runs: Sequence[Run], worlds_of: Sequence[dict[str, World]], output: Path) -> Iterator[str]:
    """Yield a comparison of the placements of image generation in each world, and draw the first world."""
    generating = [(run, worlds) for run, worlds in zip(runs, worlds_of) if run.generates]
    if any(world.enforced for _, worlds in generating[:1] for world in worlds.values()):
        raise UserError(
            f"--placements: in another placement other clients of {generating[0][0].name} would have "
            "participated in its world; give a run whose world has enforced=false"
        )
    if not generating:
        raise UserError(
            "--placements needs a run with clients and generated images; give one with method=genfl or sent"
        )
    (run, worlds), drawn = generating[0], {}
    if run.uncounted:
        raise UserError(
            f"--placements: {run.name}: the cost of {run.uncounted} at clients and helper is unknown; price "
            "another generator: generation.checkpoint=NAME"
        )
    picture = output.with_stem(f"{output.stem}_placements")
    for name, world in worlds.items():
        met, drawn[name] = draw_cohorts(run.trace, world), _placement_curves(run.trace, world)
        yield f"\nplacements of image generation on {run.name}, world {name}:"
        yield from _placement_table(
            {one: price_run(run.trace, world, met, one) for one in PLACEMENTS}, run.trace, world
        )
        yield from _break_even(drawn[name], run.trace, world)
    yield ""
    for name, about in PLACEMENTS.items():
        yield from textwrap.wrap(f"{name}  {about}", WIDTH, initial_indent="  ", subsequent_indent=" " * 6)
    name = next(iter(worlds))
    plotting.save(
        cost_figures.placements(drawn[name], FACTORS, MEASURES, f"{run.name}, world {name}"), picture
    )
    yield f"\ncosts over number and size of images, world {name}: {picture}"


def table(priced: Sequence[Priced], target: float | None) -> Iterator[str]:
    """Yield the costs of each run and world, in all or until accuracy `target`, in WIDTH columns."""
    last = [_last_round(one, target) for one in priced]
    costs = np.array([_costs(one, rounds) for one, rounds in zip(priced, last)])
    factors, units = zip(*(scale(column.max(), unit) for column, unit in zip(costs.T, COST_UNITS)))
    columns = "".join(f"{name:>10}" for name in ("time", "clients", "server", "up", "down"))
    yield f"{'':15}{'rounds':>6}{'accuracy':>9}{columns}"
    yield f"{'':21}{'(%)':>9}" + "".join(f"{f'({unit})':>10}" for unit in units)
    rows = zip(priced, last, costs / factors)
    for _, of_run in groupby(rows, lambda row: id(row[0].run)):
        for number, (one, rounds, row) in enumerate(of_run):
            if not number:
                yield from textwrap.wrap(one.run.title, WIDTH)
            yield from _row(one, target, rounds, row)


def _last_round(priced: Priced, target: float | None) -> int:
    """Return the number of rounds until accuracy `target`, or of all if None; 0 if it is never reached."""
    accuracy = priced.run.accuracy
    if target is None:
        return len(accuracy)
    reached = np.flatnonzero(accuracy >= target)
    return int(reached[0]) + 1 if len(reached) else 0


def _costs(priced: Priced, rounds: int) -> tuple[float, ...]:
    """Return the costs of the first `rounds` in COST_UNITS: time, clients, server, up, down."""
    spent = {**priced.bill.joules, **priced.bill.bytes}
    sums = (spent[key][:rounds].sum() for key in ("clients", "server", "up", "down"))
    return priced.bill.seconds[:rounds].sum(), *sums


def _row(priced: Priced, target: float | None, rounds: int, costs: np.ndarray) -> Iterator[str]:
    """Yield the row of the table for one run and world. costs: in the units of the table."""
    name = f"  {priced.world:<13}"
    if len(name) > 15:
        yield from textwrap.wrap(priced.world, WIDTH, initial_indent="  ", subsequent_indent="  ")
        name = " " * 15
    if not rounds:
        yield f"{name} never" + (
            f" reaches {100 * target:g} %" if target is not None else " finished a round"
        )
        return
    accuracy = 100 * last_evaluated(priced.run.accuracy[:rounds])
    yield f"{name}{rounds:6d}{accuracy:9.2f}" + "".join(f"{cost:10.4g}" for cost in costs)
    if priced.run.trace.tiers:
        wire = priced.bill.bytes["wire"][:rounds].sum()
        yield f"{'':15}{wire / 1e6:.4g} MB between edge servers and cloud"


def _placement_table(bills: dict[str, Bill], trace: Trace, world: World) -> Iterator[str]:
    """Yield lines of at most WIDTH columns: the total costs of each placement."""
    yield from textwrap.wrap(
        f"{trace.new_images.sum()} images of {trace.image_flops / 1e12:.3g} TFLOP and "
        f"{image_bytes(trace, world.images):g} B; "
        f"a model of {trace.weights_bytes / 1e6:.3g} MB, {trace.sample_flops / 1e6:.3g} MFLOP per sample; "
        f"a generator of {trace.generator_bytes / 1e6:.3g} MB",
        WIDTH,
    )
    names = ("clients", "server", "helper", "up", "down", "wire")
    sums = {key: {**one.joules, **one.bytes} for key, one in bills.items()}
    costs = np.array([[spent[name].sum() for name in names] for spent in sums.values()])
    factors, units = zip(*(scale(column.max(), unit) for column, unit in zip(costs.T, "JJJBBB")))
    yield f"  {'time':>12}" + "".join(f"{name:>11}" for name in names)
    yield f"  {'(s)':>12}" + "".join(f"{f'({unit})':>11}" for unit in units)
    for (name, one), row in zip(bills.items(), costs / factors):
        yield f"{name}{one.seconds.sum():12.5g}" + "".join(f"{cost:11.4g}" for cost in row)


def _placement_curves(trace: Trace, world: World) -> Curves:
    """Return total costs of every placement over FACTORS of the number and of the size of the images.

    {"number": {placement: {measure: float64 (factors,)}}, "size": ...}.
    """
    met = draw_cohorts(trace, world)
    found: Curves = {}
    for axis, argument in (("number", "images"), ("size", "size")):
        found[axis] = {}
        for placement in PLACEMENTS:
            spent = [
                _totals(price_run(scale_images(trace, **{argument: factor}), world, met, placement))
                for factor in FACTORS
            ]
            found[axis][placement] = {
                measure: np.array([one[measure].sum() for one in spent]) for measure in MEASURES
            }
    return found


def _break_even(found: Curves, trace: Trace, world: World) -> Iterator[str]:
    """Yield where the costs of two placements cross, in bytes per image and in images, in WIDTH columns."""
    images, bytes = trace.new_images.sum(), image_bytes(trace, world.images)
    yield from textwrap.wrap(
        f"break-even points, between {FACTORS[0]:g} and {FACTORS[-1]:g} times the run's {images} images or "
        f"their {bytes:g} bytes",
        WIDTH,
    )
    equal = f"{'equal at (B/image)':>21}{'equal at (images)':>19}"
    yield f"  {'measure':<15}{'placements':<12}{'cheaper':<11}{equal}"
    run_size = np.searchsorted(FACTORS, 1.0)
    for measure in MEASURES:
        for one, other in COMPARED:
            first, second = (found["size"][name][measure] for name in (one, other))
            less = (
                "neither"
                if np.isclose(first[run_size], second[run_size], rtol=1e-6)
                else one
                if first[run_size] < second[run_size]
                else other
            )
            points = (
                unit * crossing(found[axis][one][measure], found[axis][other][measure])
                for axis, unit in (("size", bytes), ("number", images))
            )
            size, number = ("never" if np.isnan(point) else f"{point:.4g}" for point in points)
            yield f"  {measure:<15}{one + ', ' + other:<12}{less:<11}{size:>21}{number:>19}"


def crossing(one: np.ndarray, other: np.ndarray) -> float:
    """Return the first factor at which two curves over FACTORS cross, or NaN.

    Interpolates the logarithm of their ratio."""
    ratio = np.log(one) - np.log(other)
    crossed = np.flatnonzero(ratio[:-1] * ratio[1:] < 0)
    if not len(crossed):
        return np.nan
    i = crossed[0]
    return FACTORS[i] * (FACTORS[i + 1] / FACTORS[i]) ** (ratio[i] / (ratio[i] - ratio[i + 1]))


def rows(priced: Sequence[Priced]) -> Iterator[tuple[Any, ...]]:
    """Yield a header, then tuples (run, world, round, entity, phase, seconds, joules)."""
    yield "run", "world", "round", "entity", "phase", "seconds", "joules"
    for one in priced:
        for round, price in enumerate(one.bill.prices, 1):
            for phase, seconds in price.client_seconds.items():
                for client, *spent in zip(price.clients, seconds, price.client_joules[phase]):
                    yield one.run.title, one.world, round, f"client {client}", phase, *spent
            for phase, busy in price.server_seconds.items():
                entity = "helper" if phase == "helper" else "server"
                yield one.run.title, one.world, round, entity, phase, busy, price.server_joules[phase]


def read_all(paths: Sequence[Path], overrides: Sequence[str] = ()) -> list[Run]:
    """Return the `Run`s of results files, with the settings that distinguish them, in the order of methods.

    Raises UserError.
    """
    configs, runs = zip(*(_read(path, overrides) for path in paths))
    found = [
        replace(run, settings=", ".join(filter(None, names)))
        for run, names in zip(runs, distinguish(configs)[0])
    ]
    return sorted(found, key=lambda run: METHOD_ORDER[run.method])


def read(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Return the `Run` of a results file. Raises UserError. overrides: "key=value", of REPLACEABLE."""
    return _read(path, overrides)[1]


def _read(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], Run]:
    """Return the stored configuration, nested dicts, and the `Run` with the overrides."""
    with reader.open_results(path) as file, reader.report_damage(path):
        values = reader.read_config(file)
        config = _replaced_config(path, values, overrides)
        trace, members = workload.read_trace(file, config)
        status = reader.read_columns(file, "clients", ["status"])["status"]
        rounds = reader.read_columns(file, "rounds", ["accuracy", "virtual_seconds"])
        return values, Run(
            Path(path).stem,
            METHOD_TITLES[config.method],
            config.method in ("genfl", "sent") and trace.tiers is None,
            rounds["accuracy"],
            trace,
            config.world,
            [
                np.where(np.isin(status[rows], (NOT_FINITE, VOID)), AGGREGATED, status[rows])
                for rows in members
            ],
            uncounted="" if workload.has_known_costs(config) else config.generation.checkpoint,
            clock=rounds["virtual_seconds"] if config.time.is_asynchronous else None,
        )


def _replaced_config(path: str | Path, values: dict[str, Any], overrides: Sequence[str]) -> Config:
    """Return the `Config` of nested dicts with "key=value" overrides. Raises UserError."""
    for override in overrides:
        if not override.startswith(REPLACEABLE):
            raise UserError(
                f"{override}: cannot be changed when a run is priced; only these can: "
                f"{', '.join(key.rstrip('.') for key in REPLACEABLE)}"
            )
    return configuration.single(values, overrides) if overrides else configuration.validate(values, str(path))
