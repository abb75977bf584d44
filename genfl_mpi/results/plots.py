"""Figures from results files alone."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from genfl_mpi.results.reader import config_of, open_results  # noqa: E402

# Okabe and Ito's colours, which the colour-blind tell apart: a method has the same one in every figure.
METHODS = {"fedavg": ("FedAvg", "#0072B2"), "aigc": ("AIGC-only", "#E69F00"), "genfl": ("GenFL", "#009E73")}
LINE_STYLES = ("-", "--", ":", "-.")


def accuracy(paths, out):
    """Test accuracy against rounds, a line a run, into the PNG file `out`."""
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    drawn = {}
    for path in paths:
        with open_results(path) as file:
            method = config_of(file)["method"]
            name, colour = METHODS[method]
            style = LINE_STYLES[drawn.get(method, 0) % len(LINE_STYLES)]
            label = name if method not in drawn else None
            drawn[method] = drawn.get(method, 0) + 1
            axes.plot(file["rounds/round"][:], 100 * file["rounds/accuracy"][:], style, color=colour, label=label)
            title = title_of(config_of(file))
    axes.set(xlabel="round", ylabel="test accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def title_of(config):
    split = config["partition"]
    how = f"Dirichlet({split['alpha']:g})" if split["scheme"] == "dirichlet" else split["scheme"]
    return f"{config['data']['name']}, {config['clients']} clients, {how}"
