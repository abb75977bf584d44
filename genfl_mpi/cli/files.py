"""What results files say."""

from genfl_mpi.cli import launch
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted

FIGURES = {
    "accuracy": "test accuracy against rounds; of seeds, mean and deviation",
    "loss": "test loss, likewise",
    "classes": "test accuracy of each class",
    "partition": "samples of each class that each client holds, of a run",
    "timeline": "what each rank did in a round of a run",
    "images": "generated images beside real ones, of a run",
    "heterogeneity": "how the clients differ, of probed runs",
    "costs": "seconds of each phase and bytes of each message; with --world\n"
    "             accuracy against simulated seconds, joules and bytes",
}


def plot(arguments):
    parser = launch.parser_of_results(
        "plot",
        "Draw a figure from results files, for one column of a two-column paper:\n"
        + "\n".join(f"  {name:<15}{about}" for name, about in FIGURES.items())
        + "\nOf several runs the figures of a run show the first one of GenFL.\nFor example:\n  python -m genfl_mpi plot results/default\n"
        "  python -m genfl_mpi plot results/default --figure timeline --round 5 -o a.pdf",
    )
    parser.add_argument(
        "--figure", choices=FIGURES, default="accuracy", help="which (default: %(default)s)", metavar="NAME"
    )
    parser.add_argument(
        "--round", type=int, metavar="N", help="the round of a timeline (default: the last one)"
    )
    parser.add_argument(
        "--world",
        action="append",
        metavar="FILE",
        help="costs in a simulated world, see configs/worlds; may be given several times",
    )
    parser.add_argument(
        "-o",
        "--output",
        help="the image file: .png, .svg or .pdf (default: NAME.png in the folder where you are)",
    )
    options = launch.parse_once(parser, arguments)

    def lines():
        from genfl_mpi.analysis import figures, summary
        from genfl_mpi.results import reader
        from genfl_mpi.util import plotting

        if options.round and options.figure != "timeline":
            raise UserError("--round goes with --figure timeline")
        if options.world and options.figure != "costs":
            raise UserError("--world goes with --figure costs")
        paths, output = reader.find(options.results), options.output or f"{options.figure}.png"
        if options.world:
            from genfl_mpi.analysis import pricing

            runs, shown = pricing.read_all(paths), paths
            figure = pricing.figure(pricing.in_worlds(runs, pricing.worlds_for(runs, options.world)))
        else:
            figure, shown = figures.draw(options.figure, paths, options.round)
        plotting.save(figure, output)
        if options.figure == "accuracy":
            yield from summary.table(paths)
        whose = f"{len(shown)} runs" if len(shown) > 1 else str(shown[0])
        yield f"{whose}; figure in {output}"

    return launch.print_lines(lines())


def summary(arguments):
    parser = launch.parser_of(
        "summary",
        "Many runs at a glance, while some of them still run, were cut off or have not\n"
        "begun: how far each is, the final accuracies of those that are finished, and a\n"
        "figure of all rounds that there are. For example:\n"
        "  python -m genfl_mpi summary results/fig5",
    )
    parser.add_argument(
        "results", nargs="+", help="results files, whether they are there or not, or folders of them"
    )
    parser.add_argument(
        "-o", "--output", help="the figure: .png, .pdf or .svg (default: summary.png beside the results)"
    )
    options = launch.parse_once(parser, arguments)

    def lines():
        from genfl_mpi.analysis import curves, overview
        from genfl_mpi.results import reader
        from genfl_mpi.util import plotting

        states = [overview.state(path) for path in reader.find(options.results)]
        yield from overview.lines(states)
        if drawn := overview.with_rounds(states):
            output = options.output or drawn[0].parent / "summary.png"
            plotting.save(curves.accuracy(drawn), output)
            yield f"figure in {output}"

    return launch.print_lines(lines())


def claims(arguments):
    parser = launch.parser_of_results(
        "claims",
        "Test the paper's claims on results files of several methods, alphas and seeds,\n"
        "and write the ledger as a table. For example:\n"
        "  python -m genfl_mpi claims results/fig5-small results/fig6-small",
    )
    parser.add_argument(
        "-o",
        "--output",
        default="claims.md",
        help="the table, in Markdown (default: %(default)s in the folder where you are)",
    )
    options = launch.parse_once(parser, arguments)

    def lines():
        from genfl_mpi.analysis import claims, ledger
        from genfl_mpi.analysis.run_groups import Runs
        from genfl_mpi.results import reader

        runs = Runs(reader.find(options.results))
        judged, note = claims.ledger(runs), claims.note(runs)
        ledger.write(judged, note, options.output)
        yield from ledger.text(judged, note)
        yield f"table in {options.output}"

    return launch.print_lines(lines())


def price(arguments):
    parser = launch.parser_of(
        "price",
        "What finished runs take in seconds, joules and bytes in simulated worlds,\n"
        "without training: a table, and accuracy against each of the three. A setting of\n"
        "model.* or of the generator, as key=value, prices the run as if it had had that\n"
        "model or generator. For example:\n"
        "  python -m genfl_mpi price results/default --world configs/worlds/city.yaml",
    )
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS|key=value", help="results files, or folders of them"
    )
    parser.add_argument(
        "--world",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file of a world, see configs/worlds; may be given several times; none: the default world",
    )
    parser.add_argument(
        "--target", type=float, help="price the rounds until the test accuracy, between 0 and 1, is this"
    )
    parser.add_argument(
        "--placements",
        action="store_true",
        help="compare the placements of AIGC, P0 to P5, on the first run that generated images, and draw them into OUTPUT_placements",
    )
    parser.add_argument(
        "--csv", metavar="FILE", help="write seconds and joules of each client, round and entity"
    )
    launch.add_figure(parser, "price.png")
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.analysis import pricing

    return launch.print_lines(pricing.command(options))


def incentive(arguments):
    parser = launch.parser_of(
        "incentive",
        "What the server should pay the clients of a run for generating what their\n"
        "labels lack: their best responses to a price, the price it prefers, and what\n"
        "follows; and a figure over the price. Money is in joules. For example:\n"
        "  python -m genfl_mpi incentive results/default/genfl_seed1.h5",
    )
    parser.add_argument("file")
    parser.add_argument(
        "--world", metavar="FILE", help="YAML file of a world, see configs/worlds; none: the default world"
    )
    parser.add_argument(
        "--value",
        type=float,
        metavar="J",
        help="what a unit less of mean EMD is worth to the server; none: twice what repairing all would cost",
    )
    parser.add_argument(
        "--base", type=float, metavar="J", help="pay for taking part; none: the median of what it costs"
    )
    parser.add_argument("--budget", type=float, metavar="J", help="most that the server pays; none: no limit")
    launch.add_figure(parser, "incentive.png")
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.analysis import incentive_design

    return launch.print_lines(incentive_design.command(options))


def audit(arguments):
    parser = launch.parser_of(
        "audit",
        "Whether the clients of a run that was made with audit=true did what they claim:\n"
        "who returned the global model, or a model that was not trained, and who holds\n"
        "other labels than it told. For example:\n"
        "  python -m genfl_mpi audit=true misbehaving_clients.share=0.2 \\\n"
        "      misbehaving_clients.kind=free_rider method=fedavg output=results/audit\n"
        "  python -m genfl_mpi audit results/audit/fedavg_seed1.h5",
    )
    parser.add_argument("file")
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.analysis import audit

    return launch.print_lines(audit.lines(options.file))


def hindsight(arguments):
    parser = launch.parser_of(
        "hindsight",
        "What kappa would have been the best in hindsight, in a run that was made with\n"
        "hindsight.every=1 or more: the loss along the segment between the round's two\n"
        "models, its barrier, and each kappa policy's regret; and one figure.\n"
        "For example:\n"
        "  python -m genfl_mpi method=genfl hindsight.every=1 output=results/lab\n"
        "  python -m genfl_mpi hindsight results/lab/genfl_seed1.h5",
    )
    parser.add_argument("file")
    launch.add_figure(parser, "hindsight.png")
    options = launch.parse_once(parser, arguments)

    def lines():
        from genfl_mpi.analysis import hindsight_figures
        from genfl_mpi.util import plotting

        looks = hindsight_figures.read(options.file)
        plotting.save(hindsight_figures.draw(looks), options.output)
        yield from hindsight_figures.table(looks)
        yield f"figure in {options.output}"

    return launch.print_lines(lines())


def scaling(arguments):
    parser = launch.parser_of_results(
        "scaling",
        "Print and draw how runs scaled, from results files of the same configuration on\n"
        "different numbers of ranks: speed-up, efficiency and where the time went,\n"
        "against the prediction from the fewest ranks; and from runs that differ in\n"
        "clients or cohort: seconds of a round and accuracy. For example:\n"
        "  python -m genfl_mpi scaling results/1 results/2 results/4",
    )
    launch.add_figure(parser, "scaling.png")
    options = launch.parse_once(parser, arguments)

    def lines():
        from genfl_mpi.analysis import scaling
        from genfl_mpi.results import reader

        yield from scaling.command(reader.find(options.results), options.output)

    return launch.print_lines(lines())


def show(arguments):
    parser = launch.parser_of(
        "show",
        "Print what is in a results file. For example:\n"
        "  python -m genfl_mpi show results/default/genfl_seed1.h5",
    )
    parser.add_argument("file")
    options = launch.parse_once(parser, arguments)
    from genfl_mpi.analysis.show import show

    return launch.print_lines(show(options.file))


def digest(arguments):
    parser = launch.parser_of(
        "digest",
        "Print the SHA-256 of the final weights and of the results without clocks, hosts\n"
        "and bytes: equal for equal runs on any number of ranks. For example:\n"
        "  python -m genfl_mpi digest results/default/*.h5",
    )
    parser.add_argument("file", nargs="+")
    options = launch.parse_once(parser, arguments)
    from genfl_mpi.results.reader import digests

    def lines():
        for file in options.file:
            weights, results, finished = digests(file)
            yield f"{file}{'' if finished else '  (not finished)'}\n  weights {weights}\n  results {results}"

    return launch.print_lines(lines())


def watch(arguments):
    parser = launch.parser_of_results(
        "watch",
        "Follow runs that another shell or a batch job computes, until they are finished:\n"
        "on a terminal a view that is drawn again and again, else a line for each round.\n"
        "For example:\n  python -m genfl_mpi watch results/default",
    )
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.results import reader
    from genfl_mpi.runs import display

    def lines():
        yield from ()
        reader.find(options.results)  # complains if there is nothing at all
        display.watch(lambda: reader.find(options.results), launch.say)

    try:
        return launch.print_lines(lines())
    except KeyboardInterrupt:
        return 130


def export(arguments):
    parser = launch.parser_of_results(
        "export",
        "Write a table of results files for other tools: a CSV file with a row for each\n"
        "round, or logs for TensorBoard. For example:\n"
        "  python -m genfl_mpi export results/default --table clients -o clients.csv\n"
        "  python -m genfl_mpi export results/default --tensorboard results/logs",
    )
    parser.add_argument(
        "--table",
        choices=("rounds", "clients", "generated", "partition"),
        default="rounds",
        help="which (default: %(default)s)",
    )
    parser.add_argument(
        "-o", "--output", help="the CSV file (default: TABLE.csv in the folder where you are)"
    )
    parser.add_argument(
        "--tensorboard",
        metavar="FOLDER",
        help="write the rounds of each run as scalars into FOLDER/RUN instead",
    )
    options = launch.parse_once(parser, arguments)

    def lines():
        from genfl_mpi.analysis import tables
        from genfl_mpi.results import reader

        paths = reader.find(options.results)
        if options.tensorboard:
            tables.to_tensorboard(paths, options.tensorboard)
            yield f"{len(paths)} runs; logs in {options.tensorboard}: tensorboard --logdir {options.tensorboard}"
        else:
            output = options.output or f"{options.table}.csv"
            tables.write_csv(output, tables.rows(paths, options.table))
            yield f"{options.table} of {counted(len(paths), 'run')} in {output}"

    return launch.print_lines(lines())


def report(arguments):
    parser = launch.parser_of_results(
        "report",
        "Write all about a run or a sweep into one HTML file, which needs nothing beside\n"
        "it: configuration, environment, figures, tables, claims, images. For example:\n"
        "  python -m genfl_mpi report results/default -o report.html",
    )
    parser.add_argument(
        "-o", "--output", help="the HTML file (default: report.html beside the first results file)"
    )
    options = launch.parse_once(parser, arguments)

    def lines():
        from genfl_mpi.analysis import report
        from genfl_mpi.results import reader

        paths = reader.find(options.results)
        output = options.output or paths[0].parent / "report.html"
        report.write(paths, output)
        yield f"{len(paths)} runs; report in {output}"

    return launch.print_lines(lines())
