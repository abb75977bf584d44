"""The closing table of a run or a sweep."""

from collections import defaultdict

import numpy as np

from genfl_mpi.config import flatten
from genfl_mpi.results.plots import METHODS
from genfl_mpi.results.reader import config_of, open_results


def summary(paths):
    """Lines of a table: a row for the runs that differ in nothing but the seed, mean and deviation over seeds."""
    groups, varied = defaultdict(list), defaultdict(set)
    for path in paths:
        with open_results(path) as file:
            config = flatten(config_of(file))
            accuracy, seconds = file["rounds/accuracy"][:], file["rounds/round_seconds"][:].sum()
        for key, value in config.items():
            if value != config.get(key.replace("augmented.", "training.")) or not key.startswith("augmented."):
                varied[key].add(str(value))
        groups[tuple(sorted((k, str(v)) for k, v in config.items() if k not in ("seed", "generation.seed")))].append((config, accuracy, seconds))
    extra = [key for key in varied if len(varied[key]) > 1 and key not in ("method", "seed", "generation.seed")]
    yield f"{'method':<10} {'':<{_width(extra)}}  final accuracy (%)  best (%)  seconds  seeds"
    for runs in groups.values():
        config = runs[0][0]
        final = np.array([100 * accuracy[-1] for _, accuracy, _ in runs])
        best = np.mean([100 * accuracy.max() for _, accuracy, _ in runs])
        spread = f" ± {final.std(ddof=1):4.2f}" if len(final) > 1 else "       "
        settings = ", ".join(f"{key.rpartition('.')[2]} {config[key]}" for key in extra)
        yield (f"{METHODS[config['method']][0]:<10} {settings:<{_width(extra)}}  {final.mean():11.2f}{spread}  {best:8.2f}"
               f"  {np.mean([seconds for _, _, seconds in runs]):7.1f}  {len(runs):5d}")


def _width(extra):
    return 24 if extra else 0
