"""Seconds and bytes per round of client state: many clients, each with the last layer of ResNet-18.

    python benchmarks/client_state.py [--clients 10000] [--cohort 100] [--rounds 200] [--folder FOLDER]

Every round a random cohort reads and writes its state, with one flush; every round also ends as a checkpoint
does, with compaction and pruning if due. Put the folder on the file system that a run would use.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from genfl_mpi.results.client_state import NOWHERE, ClientStates

HEAD = 512 * 10 + 10  # weights of ResNet-18's last layer, for 10 classes


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    rng, values = np.random.default_rng(1), np.ones(HEAD, dtype=np.float32)
    trained = np.zeros(options.clients, dtype=np.int64)
    locations = np.full((options.clients, 4), NOWHERE, dtype=np.int64)
    spent: dict[str, list[float]] = {"read": [], "write and flush": [], "compact and prune": []}
    compactions = largest = 0

    def timed(part, function):
        start = time.perf_counter()
        function()
        spent[part].append(time.perf_counter() - start)

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        states = ClientStates(folder, {"personal": (HEAD,)}, "benchmark")
        for round in range(1, options.rounds + 1):
            cohort = rng.choice(options.clients, options.cohort, replace=False).tolist()

            def read(cohort=cohort):
                for client in cohort:
                    states.read(client, int(trained[client]), locations[client])

            def write(cohort=cohort, round=round):
                for client in cohort:
                    locations[client] = round, 0, *states.write(client, round, {"personal": values})
                    trained[client] = round
                states.commit()

            def close(round=round):
                nonlocal compactions
                if states.is_scattered(locations):
                    locations[:] = states.compact(round, trained, locations)
                    compactions += 1
                states.flush()
                states.prune(round, [locations])

            timed("read", read)
            timed("write and flush", write)
            timed("compact and prune", close)
            largest = max(largest, sum(path.stat().st_size for path in Path(folder).iterdir()))
    size = options.cohort * states.size / 1e6
    print(f"{options.clients} clients, cohort {options.cohort}: {size:.2f} MB read and written per round")
    for part, seconds in spent.items():
        print(
            f"{part:<18} median {1e3 * statistics.median(seconds):8.2f} ms, mean "
            f"{1e3 * statistics.mean(seconds):8.2f} ms, longest {1e3 * max(seconds):8.2f} ms"
        )
    print(f"{compactions} compactions; at most {largest / 1e6:.1f} MB on disk")


if __name__ == "__main__":
    main()
