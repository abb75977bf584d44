"""Run a reference job in pfl-research, written like its own image classification benchmark.

../reference_jobs.py starts this file, with and without torchrun.
"""

import argparse
import sys
import time
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from jobs import FORMATS, JOBS, data, network, tell  # noqa: E402


def loss(self, inputs, targets, eval=False):
    self.eval() if eval else self.train()
    return F.cross_entropy(self(inputs), targets)


@torch.no_grad()
def metrics(self, inputs, targets, eval=True):
    self.eval() if eval else self.train()
    logits = self(inputs)
    return {
        "loss": Weighted(F.cross_entropy(logits, targets, reduction="sum").item(), len(inputs)),
        "accuracy": Weighted((logits.argmax(-1) == targets).float().sum().item(), len(inputs)),
    }


class Stopwatch(TrainingProcessCallback):
    """Print the seconds of each round but the first.

    The first round also evaluates; the later ones only train and aggregate.
    """

    def on_train_begin(self, *, model):
        self.since = time.perf_counter()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        now = time.perf_counter()
        if central_iteration and pytorch_ops.distributed.global_rank == 0:
            tell(round=now - self.since)
        self.since = now
        return False, Metrics()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--format", choices=FORMATS, default="channels_last")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    job = JOBS[options.job]
    module, of_client = (make(job, options.format, options.device) for make in (network, data))
    module.loss, module.metrics = types.MethodType(loss, module), types.MethodType(metrics, module)
    clients = {client: of_client(client) for client in range(job.clients)}
    training_data = FederatedDataset.from_slices(clients, get_user_sampler("random", list(clients)))
    model = PyTorchModel(
        model=module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), 1.0),
    )
    backend = SimulatedBackend(
        training_data=training_data, val_data=None, postprocessors=[WeightByDatapoints()]
    )
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=options.rounds + 1,
            evaluation_frequency=options.rounds + 2,
            train_cohort_size=job.cohort,
            val_cohort_size=None,
        ),
        backend=backend,
        model=model,
        callbacks=[Stopwatch()],
        model_train_params=NNTrainHyperParams(
            local_learning_rate=job.lr, local_num_epochs=1, local_batch_size=job.batch
        ),
    )


if __name__ == "__main__":
    main()
