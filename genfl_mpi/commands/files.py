"""What results files say."""

import argparse

from genfl_mpi.commands import launch


def plot(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m genfl_mpi plot", description="Draw test accuracy against rounds from results files: a panel for each data set "
        "and alpha, a curve for each method, mean and standard deviation over seeds; and print the final accuracies.")
    parser.add_argument("results", nargs="+", help="results files, or folders of them")
    parser.add_argument("-o", "--output", default="accuracy.png", help="the figure: .png, .pdf or .svg (default: %(default)s)")
    options = parser.parse_args(arguments)

    def lines():
        from genfl_mpi.results import plots, reader, summary

        paths = reader.find(options.results)
        plots.accuracy(paths, options.output)
        yield from summary.table(paths)
        yield f"{len(paths)} runs; figure in {options.output}"

    return launch.print_lines(lines())


def claims(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m genfl_mpi claims", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Test the paper's claims on results files of several methods, alphas and seeds,\n"
        "and write the ledger as a table. For example:\n"
        "  python -m genfl_mpi claims results/fig5-small results/fig6-small")
    parser.add_argument("results", nargs="+", help="results files, or folders of them")
    parser.add_argument("-o", "--output", default="claims.md", help="the table, in Markdown (default: %(default)s)")
    options = parser.parse_args(arguments)

    def lines():
        from genfl_mpi import claims
        from genfl_mpi.results import ledger, reader
        from genfl_mpi.results.runs import Runs

        runs = Runs(reader.find(options.results))
        judged, note = claims.ledger(runs), claims.note(runs)
        ledger.write(judged, note, options.output)
        yield from ledger.text(judged, note)
        yield f"table in {options.output}"

    return launch.print_lines(lines())


def price(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m genfl_mpi price", description="What finished runs take in seconds, joules and bytes in simulated worlds, "
        "without training: a table, and accuracy against each of the three. A setting of model.* or of the generator, as key=value, "
        "prices the run as if it had had that model or generator.")
    parser.add_argument("results", nargs="+", metavar="RESULTS|key=value", help="results files, or folders of them")
    parser.add_argument("--world", action="append", default=[], metavar="FILE",
                        help="YAML file of a world, see configs/worlds; may be given several times; none: the default world")
    parser.add_argument("--target", type=float, help="price the rounds until the test accuracy, between 0 and 1, is this")
    parser.add_argument("--placements", action="store_true",
                        help="compare the placements of AIGC, P0 to P5, on the first run that generated images, and draw them into OUTPUT_placements")
    parser.add_argument("--csv", metavar="FILE", help="write seconds and joules of each client, round and entity")
    parser.add_argument("-o", "--output", default="price.png", help="the figure: .png, .pdf or .svg (default: %(default)s)")
    options = parser.parse_args(arguments)

    def lines():
        from genfl_mpi import pricing

        yield from pricing.command(options)

    return launch.print_lines(lines())


def incentive(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m genfl_mpi incentive", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="What the server should pay the clients of a run for generating what their\n"
        "labels lack: their best responses to a price, the price it prefers, and what\n"
        "follows; and a figure over the price. Money is in joules. For example:\n"
        "  python -m genfl_mpi incentive results/default/genfl_seed1.h5")
    parser.add_argument("file")
    parser.add_argument("--world", metavar="FILE", help="YAML file of a world, see configs/worlds; none: the default world")
    parser.add_argument("--value", type=float, metavar="J",
                        help="what a unit less of mean EMD is worth to the server; none: twice what repairing all would cost")
    parser.add_argument("--base", type=float, metavar="J", help="pay for taking part; none: the median of what it costs")
    parser.add_argument("--budget", type=float, metavar="J", help="most that the server pays; none: no limit")
    parser.add_argument("-o", "--output", default="incentive.png", help="the figure: .png, .pdf or .svg (default: %(default)s)")
    options = parser.parse_args(arguments)

    def lines():
        from genfl_mpi import incentives

        yield from incentives.command(options)

    return launch.print_lines(lines())


def laboratory(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m genfl_mpi laboratory", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="What kappa would have been the best in hindsight, in a run that was made with\n"
        "laboratory.every=1 or more: the loss along the segment between the round's two\n"
        "models, its barrier, and each kappa policy's regret; and one figure. For example:\n"
        "  python -m genfl_mpi method=genfl laboratory.every=1 output=results/lab\n"
        "  python -m genfl_mpi laboratory results/lab/genfl_seed1.h5")
    parser.add_argument("file")
    parser.add_argument("-o", "--output", default="laboratory.png", help="the figure: .png, .pdf or .svg (default: %(default)s)")
    options = parser.parse_args(arguments)

    def lines():
        from genfl_mpi.results import hindsight

        looks = hindsight.read(options.file)
        hindsight.draw(looks, options.output)
        yield from hindsight.table(looks)
        yield f"figure in {options.output}"

    return launch.print_lines(lines())


def show(arguments):
    parser = argparse.ArgumentParser(prog="python -m genfl_mpi show", description="Print what is in a results file.")
    parser.add_argument("file")
    options = parser.parse_args(arguments)
    from genfl_mpi.results.show import show

    return launch.print_lines(show(options.file))


def digest(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m genfl_mpi digest", description="Print the SHA-256 of the final weights and of the results without clocks, "
        "hosts and bytes: equal for equal runs on any number of ranks.")
    parser.add_argument("file", nargs="+")
    options = parser.parse_args(arguments)
    from genfl_mpi.results.reader import digests

    def lines():
        for file in options.file:
            weights, results, finished = digests(file)
            yield f"{file}{'' if finished else '  (not finished)'}\n  weights {weights}\n  results {results}"

    return launch.print_lines(lines())
