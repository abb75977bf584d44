"""A reference job in Flower, written like its quickstart for PyTorch; ../reference_jobs.py runs it."""

import argparse
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

HERE = str(Path(__file__).parents[1])
sys.path.insert(0, HERE)
os.environ["PYTHONPATH"] = os.pathsep.join(
    [HERE, os.environ.get("PYTHONPATH", "")]
)  # for the actors' processes
# Without RAY_worker_niceness (Ray's own spelling) the actors yield to all other processes of the machine.
os.environ.update({"FLWR_TELEMETRY_ENABLED": "0", "RAY_worker_niceness": "0"})

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402

from jobs import FORMATS, JOBS, network, resident, tell  # noqa: E402


def client_app(name, memory_format, threads, device):
    app = ClientApp()

    @app.train()
    def train(message, context):
        torch.set_num_threads(threads)
        job, module, of_client = resident(name, memory_format, device)
        module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        images, labels = of_client(int(context.node_config["partition-id"]))
        optimizer = torch.optim.SGD(module.parameters(), job.lr)
        for batch in torch.randperm(job.samples, device=device).tensor_split(-(-job.samples // job.batch)):
            optimizer.zero_grad()
            F.cross_entropy(module(images[batch]), labels[batch]).backward()
            optimizer.step()
        content = RecordDict(
            {
                "arrays": ArrayRecord(module.state_dict()),
                "metrics": MetricRecord({"num-examples": job.samples}),
            }
        )
        return Message(content=content, reply_to=message)

    return app


class Timed(FedAvg):
    """Tells the seconds of each round after the first, from choosing its clients to the aggregate."""

    def configure_train(self, server_round, *arguments):
        self.since = time.perf_counter()
        return super().configure_train(server_round, *arguments)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        if failed := [reply.error for reply in replies if reply.has_error()]:
            raise RuntimeError(f"{len(failed)} clients failed: {failed[0]}")
        trained = time.perf_counter()
        result = super().aggregate_train(server_round, replies)
        if server_round > 1:
            now = time.perf_counter()
            tell(round=now - self.since, train=trained - self.since, reduce=now - trained)
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--format", choices=FORMATS, default="channels_last")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: shared by the actors")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    job, server_app = JOBS[options.job], ServerApp()

    @server_app.main()
    def serve(grid, context):
        torch.set_num_threads(options.threads)
        strategy = Timed(
            fraction_train=job.cohort / job.clients,
            fraction_evaluate=0.0,
            min_train_nodes=job.cohort,
            min_evaluate_nodes=0,
            min_available_nodes=job.clients,
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(network(job, options.format).state_dict()),
            num_rounds=options.rounds + 1,
        )

    gpus = 1.0 if options.device == "cuda" else 0.0
    resources = {"num_cpus": options.threads, "num_gpus": gpus / options.actors}
    run_simulation(
        server_app,
        client_app(options.job, options.format, options.threads, options.device),
        num_supernodes=job.clients,
        backend_config={
            "init_args": {"num_cpus": options.actors * options.threads, "include_dashboard": False},
            "client_resources": resources,
        },
    )


if __name__ == "__main__":
    main()
