"""What finished runs take in seconds, joules and bytes in simulated worlds: the `price` command. Nothing is trained."""

import textwrap
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from genfl_mpi.analysis import cost_figures, tables
from genfl_mpi.analysis.summary import distinguished
from genfl_mpi.config import loading as configuration
from genfl_mpi.config.settings import METHOD_TITLES
from genfl_mpi.config.world import World
from genfl_mpi.edge.attendance import AGGREGATED, NOT_FINITE
from genfl_mpi.edge.placements import PLACEMENTS, Bill, bill, cohorts, scaled
from genfl_mpi.edge.trace import Trace, image_bytes
from genfl_mpi.federation import workload
from genfl_mpi.results import reader
from genfl_mpi.util import plotting
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import WIDTH

AS_IF = (
    "model.",
    "training.epochs",
    "augmented.epochs",
    "generation.checkpoint",
    "generation.steps",
    "generation.guidance",
    "generation.size",
)
FACTORS = np.logspace(-3, 5, 17)  # by which a break-even point is looked for
CROSSED = (("P1", "P2"), ("P1", "P3"), ("P2", "P3"), ("P1", "P4"))  # placements that are compared
MEASURES = {"seconds": "s", "client energy": "kJ", "total energy": "kJ", "air traffic": "MB"}


@dataclass(frozen=True)
class Run:
    """What is priced of a results file. accuracy: float64 (rounds,); generates: whether clients trained and images were made;
    world: in which the run was made, or None; status: of each round, what became of its clients, STATUS (K,); settings: what
    tells it from the others that are priced, besides method and seed."""

    name: str
    method: str
    generates: bool
    accuracy: np.ndarray
    trace: Trace
    world: World | None
    status: list
    settings: str = ""

    @property
    def title(self):
        return ": ".join(filter(None, (self.name, self.settings)))


@dataclass(frozen=True)
class Priced:
    """A `Run` in a world."""

    run: Run
    world: str
    bill: Bill

    def until(self, measure):
        """What has been spent after each round, float64 (rounds,): of the MEASURES."""
        return np.cumsum(totals(self.bill)[measure])


def totals(one):
    """A `Bill`'s MEASURES, in their units, float64 (rounds,) each."""
    return {
        "seconds": one.seconds,
        "client energy": one.joules["clients"] / 1e3,
        "total energy": sum(one.joules.values()) / 1e3,
        "air traffic": (one.bytes["down"] + one.bytes["up"]) / 1e6,
    }


def command(options):
    """Lines of the `price` command. options: its parsed arguments. Raises UserError."""
    as_if = [one for one in options.results if "=" in one and not Path(one).exists()]
    paths = reader.find([one for one in options.results if one not in as_if])
    runs = read_all(paths, as_if)
    worlds_of = worlds_for(runs, options.world, as_if)
    priced = in_worlds(runs, worlds_of)
    yield from table(priced, options.target)
    plotting.save(figure(priced), options.output)
    yield f"\naccuracy against what was spent: {options.output}"
    if options.csv:
        tables.write_csv(options.csv, rows(priced))
        yield f"each client, round and entity: {options.csv}"
    if options.placements:
        yield from _placements(runs, worlds_of, options.output)


def worlds_for(runs, files, as_if=()):
    """The worlds of each of `runs`, {name: `World`}: those of the YAML files, or the default world; and for a run on which a world
    acted, its own. Raises UserError if another is wanted for that one, or it is to be priced as if it had been another."""
    worlds = {Path(file).stem: configuration.load_world(file) for file in files} or {"default": World()}
    if acting := next((name for name, world in worlds.items() if world.enforced), None):
        raise UserError(
            f"world {acting} acts on runs (enforced=true), and would have had another run of these: make one in it, with "
            "world=FILE, or price them with enforced=false"
        )
    for run in runs:
        if run.world is not None and (files or as_if):
            raise UserError(
                f"{run.name}: a world acted on this run: by its times and energies clients or weights were chosen, "
                "or some not heard; another world would have had another run: price it without --world and "
                "key=value, in its own"
            )
    return [worlds if run.world is None else {"own": run.world} for run in runs]


def in_worlds(runs, worlds_of):
    """A `Priced` for each of `runs` in each of its worlds, {name: `World`}."""
    priced = [
        Priced(run, name, bill(run.trace, world, cohorts(run.trace, world)))
        for run, own in zip(runs, worlds_of)
        for name, world in own.items()
    ]
    for one in priced:
        if any((then != now).any() for then, now in zip(one.run.status, one.bill.status)):
            raise UserError(
                f"{one.run.name}: other clients were heard in it than its world lets be heard: a fork of a run in "
                "another world, or in none, cannot be priced"
            )
    return priced


def figure(priced):
    """Accuracy against what the `Priced` spent."""
    return cost_figures.accuracy(
        [
            (
                one.run.method,
                one.run.settings,
                one.world,
                one.run.accuracy,
                {measure: one.until(measure) for measure in MEASURES},
            )
            for one in priced
        ],
        MEASURES,
    )


def _placements(runs, worlds_of, output):
    """Lines that compare the placements of AIGC in each world, and a figure of the first one."""
    generating = [(run, worlds) for run, worlds in zip(runs, worlds_of) if run.generates]
    if any(world.enforced for _, worlds in generating[:1] for world in worlds.values()):
        raise UserError(
            f"--placements: in another placement other clients of {generating[0][0].name} would have been heard "
            "in its world, and it would have been another run"
        )
    if not generating:
        raise UserError(
            "--placements compares them on a run with clients and generated images, method=genfl or sent, and there is none"
        )
    (run, worlds), picture, drawn = (
        generating[0],
        Path(output).with_stem(f"{Path(output).stem}_placements"),
        {},
    )
    for name, world in worlds.items():
        met, drawn[name] = cohorts(run.trace, world), curves(run.trace, world)
        yield f"\nplacements of AIGC on {run.name}, world {name}:"
        yield from placement_table(
            {one: bill(run.trace, world, met, one) for one in PLACEMENTS}, run.trace, world
        )
        yield from break_even(drawn[name], run.trace, world)
    yield ""
    for name, about in PLACEMENTS.items():
        yield from textwrap.wrap(f"{name}  {about}", WIDTH, initial_indent="  ", subsequent_indent=" " * 6)
    name = next(iter(worlds))
    plotting.save(
        cost_figures.placements(drawn[name], FACTORS, MEASURES, f"{run.name}, world {name}"), picture
    )
    yield f"\ncosts over the images' number and size, world {name}: {picture}"


def table(priced, target):
    """Lines of at most WIDTH columns: of each run a row for each world, with what it spent in all, or until its test accuracy was
    `target`."""
    yield f"{'':15}{'rounds':>6}{'accuracy':>9}{'time':>10}{'clients':>10}{'server':>10}{'up':>10}{'down':>10}"
    yield f"{'':21}{'(%)':>9}{'(s)':>10}{'(kJ)':>10}{'(kJ)':>10}{'(MB)':>10}{'(MB)':>10}"
    for run, own in groupby(priced, lambda one: id(one.run)):
        for number, one in enumerate(own):
            if not number:
                yield from textwrap.wrap(one.run.title, WIDTH)
            accuracy, name = one.run.accuracy, f"  {one.world:<13}"
            reached = (
                np.flatnonzero(accuracy >= target) if target is not None else np.arange(len(accuracy))[-1:]
            )
            if len(name) > 15:
                yield from textwrap.wrap(one.world, WIDTH, initial_indent="  ", subsequent_indent="  ")
                name = " " * 15
            if not len(reached):
                yield f"{name} never" + (
                    f" reaches {100 * target:g} %" if target is not None else " finished a round"
                )
                continue
            last = reached[0] + 1
            spent = {
                key: values[:last].sum() for key, values in {**one.bill.joules, **one.bill.bytes}.items()
            }
            yield (
                f"{name}{last:6d}{100 * accuracy[last - 1]:9.2f}"
                + "".join(
                    f"{number:10.4g}"
                    for number in (
                        one.bill.seconds[:last].sum(),
                        spent["clients"] / 1e3,
                        spent["server"] / 1e3,
                        spent["up"] / 1e6,
                        spent["down"] / 1e6,
                    )
                )
            )


def placement_table(bills, trace, world):
    """Lines of at most WIDTH columns: a row for each placement, with what all rounds take."""
    yield from textwrap.wrap(
        f"{trace.new_images.sum()} images of {trace.image_flops / 1e12:.3g} TFLOP and {image_bytes(trace, world.images):g} B; "
        f"a model of {trace.weights_bytes / 1e6:.3g} MB, {trace.sample_flops / 1e6:.3g} MFLOP a sample; "
        f"a generator of {trace.generator_bytes / 1e6:.3g} MB",
        WIDTH,
    )
    yield f"  {'time':>12}{'clients':>11}{'server':>11}{'helper':>11}{'up':>11}{'down':>11}{'wire':>11}"
    yield f"  {'(s)':>12}{'(kJ)':>11}{'(kJ)':>11}{'(kJ)':>11}{'(MB)':>11}{'(MB)':>11}{'(MB)':>11}"
    for name, one in bills.items():
        kilo = {key: values.sum() / 1e3 for key, values in {**one.joules, **one.bytes}.items()}
        yield (
            f"{name}{one.seconds.sum():12.5g}"
            + "".join(
                f"{number:11.4g}"
                for number in (
                    kilo["clients"],
                    kilo["server"],
                    kilo["helper"],
                    kilo["up"] / 1e3,
                    kilo["down"] / 1e3,
                    kilo["wire"] / 1e3,
                )
            )
        )


def curves(trace, world):
    """Total costs of every placement over FACTORS of the number and of the size of the images:
    {"number": {placement: {measure: float64 (factors,)}}, "size": ...}."""
    met, found = cohorts(trace, world), {}
    for axis, argument in (("number", "images"), ("size", "size")):
        found[axis] = {}
        for placement in PLACEMENTS:
            spent = [
                totals(bill(scaled(trace, **{argument: factor}), world, met, placement)) for factor in FACTORS
            ]
            found[axis][placement] = {
                measure: np.array([one[measure].sum() for one in spent]) for measure in MEASURES
            }
    return found


def break_even(found, trace, world):
    """Lines of at most WIDTH columns: where the costs of two placements cross, in bytes an image and in images of the whole run."""
    images, bytes = trace.new_images.sum(), image_bytes(trace, world.images)
    yield from textwrap.wrap(
        f"break-even points, between {FACTORS[0]:g} and {FACTORS[-1]:g} times the run's {images} images or "
        f"their {bytes:g} bytes",
        WIDTH,
    )
    yield f"  {'measure':<15}{'placements':<12}{'less here':<11}{'alike at (B an image)':>21}{'alike at (images)':>19}"
    here = np.searchsorted(FACTORS, 1.0)
    for measure in MEASURES:
        for one, other in CROSSED:
            first, second = (found["size"][name][measure] for name in (one, other))
            less = (
                "neither"
                if np.isclose(first[here], second[here], rtol=1e-6)
                else one
                if first[here] < second[here]
                else other
            )
            points = (
                unit * crossing(found[axis][one][measure], found[axis][other][measure])
                for axis, unit in (("size", bytes), ("number", images))
            )
            size, number = ("never" if np.isnan(point) else f"{point:.4g}" for point in points)
            yield f"  {measure:<15}{one + ', ' + other:<12}{less:<11}{size:>21}{number:>19}"


def crossing(one, other):
    """The factor at which two curves over FACTORS cross first, by interpolation of their ratio's logarithm; NaN if nowhere."""
    ratio = np.log(one) - np.log(other)
    crossed = np.flatnonzero(ratio[:-1] * ratio[1:] < 0)
    if not len(crossed):
        return np.nan
    i = crossed[0]
    return FACTORS[i] * (FACTORS[i + 1] / FACTORS[i]) ** (ratio[i] / (ratio[i] - ratio[i + 1]))


def rows(priced):
    """Tuples (run, world, round, entity, phase, seconds, joules) of clients, server and helper, after one of names."""
    yield "run", "world", "round", "entity", "phase", "seconds", "joules"
    for one in priced:
        for round, price in enumerate(one.bill.prices, 1):
            for phase, seconds in price.client_seconds.items():
                for client, *spent in zip(price.clients, seconds, price.client_joules[phase]):
                    yield one.run.title, one.world, round, f"client {client}", phase, *spent
            for phase, seconds in price.server_seconds.items():
                entity = "helper" if phase == "helper" else "server"
                yield one.run.title, one.world, round, entity, phase, seconds, price.server_joules[phase]


def read_all(paths, as_if=()):
    """The `Run`s in results files, told apart. Raises UserError."""
    configs, runs = zip(*(_read(path, as_if) for path in paths))
    return [
        replace(run, settings=", ".join(filter(None, told)))
        for run, told in zip(runs, distinguished(configs)[0])
    ]


def read(path, as_if=()):
    """The `Run` in a results file, as if it had had other settings: "key=value" strings of AS_IF. Raises UserError."""
    return _read(path, as_if)[1]


def _read(path, as_if):
    """The configuration in a results file, nested dicts, and the `Run` as if it had had other settings."""
    with reader.open_results(path) as file, reader.damage(path):
        config = _as_if(path, values := reader.config_of(file), as_if)
        trace, members = workload.of_file(file, config)
        status = reader.columns_of(file, "clients", ["status"])["status"]
        accuracy = reader.columns_of(file, "rounds", ["accuracy"])["accuracy"]
        return values, Run(
            Path(path).stem,
            METHOD_TITLES[config.method],
            config.method in ("genfl", "sent"),
            accuracy,
            trace,
            config.world,
            [np.where(status[rows] == NOT_FINITE, AGGREGATED, status[rows]) for rows in members],
        )


def _as_if(path, values, as_if):
    """The `Config` of the nested dict `values`, with "key=value" strings in place of what it has. Raises UserError."""
    for override in as_if:
        if not override.startswith(AS_IF):
            raise UserError(
                f"{override}: a run is priced as if it had had other settings only of "
                f"{', '.join(key.rstrip('.') for key in AS_IF)}"
            )
    return configuration.single(values, as_if) if as_if else configuration.validate(values, str(path))
