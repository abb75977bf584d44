"""Commands that read results files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from genfl_mpi.cli import launch
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FIGURES = {
    "accuracy": "test accuracy over rounds, mean and deviation over seeds",
    "loss": "test loss over rounds, mean and deviation over seeds",
    "classes": "test accuracy of each class",
    "partition": "samples per client and class, of one run",
    "timeline": "activity of each rank in a round, of one run",
    "images": "generated images beside real ones, of one run",
    "heterogeneity": "differences between clients, of runs with probes",
    "repair": "accuracy on labels that a cohort holds, and on those it lacks",
    "fidelity": "gain over FedAvg in each class, against its images' fidelity",
    "gain": "gain over FedAvg, against the number of images",
    "robustness": "accuracy under each attack, with each defence",
    "personal": "local accuracy over clients, of runs with personal models",
    "privacy": "accuracy against epsilon, of runs with differential privacy",
    "costs": "seconds per phase and bytes per message; with --world\n"
    "                 accuracy over simulated seconds, joules and bytes",
}


def plot(arguments: Sequence[str]) -> int:
    """Draw a figure from results files."""
    parser = launch.results_parser(
        "plot",
        "Draw a figure from results files, for one column of a two-column paper:\n"
        + "\n".join(f"  {name:<15}{about}" for name, about in FIGURES.items())
        + "\nIf several runs are given, a figure of one run shows the first GenFL run.\n"
        "For example:\n"
        "  python -m genfl_mpi plot results/default\n"
        "  python -m genfl_mpi plot results/default --figure timeline --round 5 -o a.pdf",
    )
    launch.add_choice(parser, "--figure", FIGURES, "accuracy", "name of the figure")
    parser.add_argument(
        "--round", type=int, metavar="N", help="round of the timeline (default: the last one)"
    )
    parser.add_argument(
        "--world",
        action="append",
        metavar="FILE",
        help="draw the costs in a simulated world, a YAML file as in configs/worlds; repeatable",
    )
    launch.add_output(parser, "NAME.png")
    options = launch.parse_once(parser, arguments)

    def lines() -> Iterator[str]:
        from genfl_mpi.analysis import figures, summary
        from genfl_mpi.results import reader
        from genfl_mpi.util import plotting

        if options.round and options.figure != "timeline":
            raise UserError("--round needs --figure timeline")
        if options.world and options.figure != "costs":
            raise UserError("--world needs --figure costs")
        paths: Sequence[Path] = reader.find_results(options.results)
        shown, output = paths, options.output or paths[0].parent / f"{options.figure}.png"
        if options.world:
            from genfl_mpi.analysis import pricing

            runs = pricing.read_all(paths)
            figure = pricing.figure(pricing.in_worlds(runs, pricing.worlds_for(runs, options.world)))
        else:
            figure, shown = figures.draw(options.figure, paths, options.round)
        plotting.save(figure, output)
        if options.figure == "accuracy":
            yield from summary.table(paths)
        title = counted(len(shown), "run") if len(shown) > 1 else str(shown[0])
        yield f"{title}; figure in {output}"

    return launch.print_lines(lines())


def summary(arguments: Sequence[str]) -> int:
    """Show the progress and accuracy of many runs."""
    parser = launch.command_parser(
        "summary",
        "Show many runs at once, whether finished, running, interrupted or not started:\n"
        "the progress of each, the final accuracy of the finished ones, and a figure of\n"
        "all rounds so far. For example:\n"
        "  python -m genfl_mpi summary results/fig5",
    )
    parser.add_argument("results", nargs="+", help="results files, which need not exist yet, or folders")
    launch.add_output(parser, "summary.png")
    options = launch.parse_once(parser, arguments)

    def lines() -> Iterator[str]:
        from genfl_mpi.analysis import curves, overview
        from genfl_mpi.results import reader
        from genfl_mpi.util import plotting

        states = [overview.state(path) for path in reader.find_results(options.results)]
        yield from overview.report_lines(states)
        if drawn := overview.with_rounds(states):
            output = options.output or drawn[0].parent / "summary.png"
            plotting.save(curves.accuracy(drawn), output)
            yield f"figure in {output}"

    return launch.print_lines(lines())


def compare(arguments: Sequence[str]) -> int:
    """Compare two groups of runs."""
    parser = launch.command_parser(
        "compare",
        "Compare two groups of runs, A and B: print the settings in which they differ,\n"
        "and the differences of their accuracies, paired by seed, with intervals. A group\n"
        "is a results file, a folder, or a pattern in quotes. If a setting such as alpha\n"
        "varies inside both groups, runs with the same value are paired. For example:\n"
        "  python -m genfl_mpi compare 'results/seeds/fedavg*' 'results/seeds/genfl*'\n"
        "  python -m genfl_mpi compare results/before results/after",
    )
    parser.add_argument(
        "groups", nargs="+", metavar="GROUP", help="results file, folder, or pattern in quotes"
    )
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.analysis import comparison

    return launch.print_lines(comparison.report_lines(options.groups))


def claims(arguments: Sequence[str]) -> int:
    """Test the paper's claims on results files."""
    parser = launch.results_parser(
        "claims",
        "Test the paper's claims on results files of several methods, alphas and seeds,\n"
        "and write the verdicts as a table. For example:\n"
        "  python -m genfl_mpi claims results/fig5-small results/fig6-small",
    )
    launch.add_output(parser, "claims.md", "table, in Markdown")
    options = launch.parse_once(parser, arguments)

    def lines() -> Iterator[str]:
        from genfl_mpi.analysis import claims, ledger
        from genfl_mpi.analysis.run_groups import Runs
        from genfl_mpi.results import reader

        paths = reader.find_results(options.results)
        runs, output = Runs(paths), options.output or paths[0].parent / "claims.md"
        judged, note = claims.ledger(runs), claims.note(runs)
        ledger.write(judged, note, output)
        yield from ledger.text(judged, note)
        yield f"table in {output}"

    return launch.print_lines(lines())


def price(arguments: Sequence[str]) -> int:
    """Compute the seconds, joules and bytes of runs in simulated worlds."""
    parser = launch.command_parser(
        "price",
        "Compute the seconds, joules and bytes of finished runs in simulated worlds,\n"
        "without training: a table, and a figure of accuracy over each of the three.\n"
        "key=value with a setting of the model or the generator, or a number of epochs,\n"
        "prices the run as if it had been computed with that setting. For example:\n"
        "  python -m genfl_mpi price results/default --world configs/worlds/city.yaml",
    )
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS|key=value", help="results files, folders, or settings"
    )
    parser.add_argument(
        "--world",
        action="append",
        default=[],
        metavar="FILE",
        help="simulated world, a YAML file as in configs/worlds; repeatable (default: the world that acted "
        "on the run, or the default world)",
    )
    parser.add_argument(
        "--target",
        type=float,
        help="price only the rounds until this test accuracy, between 0 and 1, is reached",
    )
    parser.add_argument(
        "--placements",
        action="store_true",
        help="compare the placements of the generator, P0 to P5, for the first run that generated images, "
        "and draw them into OUTPUT_placements",
    )
    parser.add_argument(
        "--csv", metavar="FILE", help="write seconds and joules per client, round and entity to FILE"
    )
    launch.add_output(parser, "price.png")
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.analysis import pricing

    return launch.print_lines(pricing.command(options))


def incentive(arguments: Sequence[str]) -> int:
    """Compute payments to clients that generate missing labels."""
    parser = launch.command_parser(
        "incentive",
        "Compute what the server should pay the clients of a run for generating images of\n"
        "labels that they lack: the clients' best responses to a price, the optimal price\n"
        "and its consequences, and a figure over the price. Payments are in joules.\n"
        "For example:\n"
        "  python -m genfl_mpi incentive results/default/genfl_seed1.h5",
    )
    parser.add_argument("file", help="results file of a run")
    parser.add_argument(
        "--world",
        metavar="FILE",
        help="simulated world, a YAML file as in configs/worlds (default: the world that acted on the "
        "run, or the default world)",
    )
    parser.add_argument(
        "--value",
        type=float,
        metavar="J",
        help="value to the server of reducing the mean EMD by 1 (default: twice the cost of repairing all)",
    )
    parser.add_argument(
        "--base", type=float, metavar="J", help="payment for participating (default: the median cost)"
    )
    parser.add_argument(
        "--budget", type=float, metavar="J", help="maximum total payment (default: unlimited)"
    )
    launch.add_output(parser, "incentive.png")
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.analysis import incentive_design

    return launch.print_lines(incentive_design.command(options))


def best(arguments: Sequence[str]) -> int:
    """Print the best configuration of each method of a search."""
    parser = launch.results_parser(
        "best",
        "Print the best configuration of each method in a search, by the mean of the\n"
        "final accuracy over the search's seeds, and the budget of each method.\n"
        "For example:\n"
        "  python -m genfl_mpi search.runs=10 output=results/search \\\n"
        "      'search.settings.training.lr={log_uniform: [0.01, 1]}'\n"
        "  python -m genfl_mpi best results/search",
    )
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.analysis import best_settings
    from genfl_mpi.results.reader import find_results

    return launch.print_lines(best_settings.report_lines(find_results(options.results)))


def audit(arguments: Sequence[str]) -> int:
    """Find misbehaving clients."""
    parser = launch.command_parser(
        "audit",
        "Find misbehaving clients in a run with audit=true: free riders, which return the\n"
        "global model with or without noise, and clients that hold other labels than\n"
        "those that they shared. For example:\n"
        "  python -m genfl_mpi audit=true misbehaving_clients.share=0.2 \\\n"
        "      misbehaving_clients.kind=free_rider method=fedavg output=results/audit\n"
        "  python -m genfl_mpi audit results/audit/fedavg_seed1.h5",
    )
    parser.add_argument("file", help="results file of a run")
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.analysis import audit

    return launch.print_lines(audit.report_lines(options.file))


def hindsight(arguments: Sequence[str]) -> int:
    """Find the best kappa and each policy's regret."""
    parser = launch.command_parser(
        "hindsight",
        "Find the best kappa in hindsight, in a run with hindsight.every: print the loss\n"
        "along the segment between the two models of a round, its barrier, and each kappa\n"
        "policy's regret, and draw a figure.\n"
        "For example:\n"
        "  python -m genfl_mpi method=genfl hindsight.every=1 output=results/lab\n"
        "  python -m genfl_mpi hindsight results/lab/genfl_seed1.h5",
    )
    parser.add_argument("file", help="results file of a run")
    launch.add_output(parser, "hindsight.png")
    options = launch.parse_once(parser, arguments)

    def lines() -> Iterator[str]:
        from genfl_mpi.analysis import hindsight_figures
        from genfl_mpi.util import plotting

        records = hindsight_figures.read(options.file)
        output = options.output or Path(options.file).parent / "hindsight.png"
        plotting.save(hindsight_figures.draw(records), output)
        yield from hindsight_figures.table(records)
        yield f"figure in {output}"

    return launch.print_lines(lines())


def scaling(arguments: Sequence[str]) -> int:
    """Print and plot scaling with ranks, clients and cohort."""
    parser = launch.results_parser(
        "scaling",
        "Print and plot scaling. For runs of the same configuration on different numbers\n"
        "of ranks: speed-up, efficiency and time per phase, beside the prediction from\n"
        "the smallest number of ranks. For runs that differ in clients or cohort: seconds\n"
        "per round and accuracy. For example:\n"
        "  python -m genfl_mpi scaling results/1 results/2 results/4",
    )
    launch.add_output(parser, "scaling.png")
    options = launch.parse_once(parser, arguments)

    def lines() -> Iterator[str]:
        from genfl_mpi.analysis import scaling
        from genfl_mpi.results import reader

        paths = reader.find_results(options.results)
        yield from scaling.command(paths, options.output or paths[0].parent / "scaling.png")

    return launch.print_lines(lines())


def show(arguments: Sequence[str]) -> int:
    """Print the contents of a results file."""
    parser = launch.command_parser(
        "show",
        "Print the contents of a results file. For example:\n"
        "  python -m genfl_mpi show results/default/genfl_seed1.h5",
    )
    parser.add_argument("file", help="results file of a run")
    options = launch.parse_once(parser, arguments)
    from genfl_mpi.analysis.show import show

    return launch.print_lines(show(options.file))


def digest(arguments: Sequence[str]) -> int:
    """Print the SHA-256 of results."""
    parser = launch.command_parser(
        "digest",
        "Print the SHA-256 of the final weights, and of the results without times, hosts\n"
        "and bytes. Equal runs have equal digests on any number of ranks. For example:\n"
        "  python -m genfl_mpi digest results/default results/again",
    )
    parser.add_argument("file", nargs="+", help="results files, or folders of them")
    options = launch.parse_once(parser, arguments)
    from genfl_mpi.results.reader import digests, find_results

    def lines() -> Iterator[str]:
        for file in find_results(options.file):
            weights, results, finished = digests(file)
            yield f"{file}{'' if finished else '  (not finished)'}\n  weights {weights}\n  results {results}"

    return launch.print_lines(lines())


def watch(arguments: Sequence[str]) -> int:
    """Follow the progress of runs."""
    parser = launch.results_parser(
        "watch",
        "Follow runs of another shell or a batch job until they are finished, with a live\n"
        "view on a terminal, otherwise with one line per round.\n"
        "For example:\n  python -m genfl_mpi watch results/default",
    )
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.results import reader
    from genfl_mpi.runs import display

    def lines() -> Iterator[str]:
        yield from ()
        reader.find_results(options.results)  # raises UserError if no file matches
        display.watch(lambda: reader.find_results(options.results), launch.say)

    try:
        return launch.print_lines(lines())
    except KeyboardInterrupt:
        return 130


def export(arguments: Sequence[str]) -> int:
    """Write results as CSV or for TensorBoard."""
    parser = launch.results_parser(
        "export",
        "Export a table of results files to other tools as CSV, or the rounds as logs for\n"
        "TensorBoard. For example:\n"
        "  python -m genfl_mpi export results/default --table clients -o clients.csv\n"
        "  python -m genfl_mpi export results/default --tensorboard results/logs",
    )
    tables = ("rounds", "clients", "generated", "partition")
    launch.add_choice(parser, "--table", tables, "rounds", f"table to export, one of {', '.join(tables)}")
    launch.add_output(parser, "TABLE.csv", "table, in CSV")
    parser.add_argument(
        "--tensorboard",
        metavar="FOLDER",
        help="write the rounds of each run as scalars to FOLDER/RUN instead",
    )
    options = launch.parse_once(parser, arguments)

    def lines() -> Iterator[str]:
        from genfl_mpi.analysis import tables
        from genfl_mpi.results import reader

        paths = reader.find_results(options.results)
        if options.tensorboard:
            tables.to_tensorboard(paths, options.tensorboard)
            yield (
                f"{counted(len(paths), 'run')}; logs in {options.tensorboard}: "
                f"tensorboard --logdir {options.tensorboard}"
            )
        else:
            output = options.output or paths[0].parent / f"{options.table}.csv"
            tables.write_csv(output, tables.rows(paths, options.table))
            yield f"{options.table} of {counted(len(paths), 'run')} in {output}"

    return launch.print_lines(lines())


def report(arguments: Sequence[str]) -> int:
    """Write a report on runs as one HTML file."""
    parser = launch.results_parser(
        "report",
        "Write a report on a run or a sweep as one self-contained HTML file, with\n"
        "configuration, environment, figures, tables, claims and images. For example:\n"
        "  python -m genfl_mpi report results/default -o report.html",
    )
    launch.add_output(parser, "report.html", "report, in HTML")
    options = launch.parse_once(parser, arguments)

    def lines() -> Iterator[str]:
        from genfl_mpi.analysis import report
        from genfl_mpi.results import reader

        paths = reader.find_results(options.results)
        output = options.output or paths[0].parent / "report.html"
        report.write(paths, output)
        yield f"{counted(len(paths), 'run')}; report in {output}"

    return launch.print_lines(lines())
