"""Smaller uploads: stochastic quantization, and the largest entries with error feedback.

Both send the decoded update: omega^t + C(omega_n - omega^t) in float32, which is then summed exactly.

qsgd (Alistarh et al. 2017), without entropy coding. A bucket of 512 neighbours v has the scale m = max |v_i|
and s = 2^(bits - 1) - 1 levels; v_i becomes m sign(v_i) k / s, where k is s |v_i| / m rounded up or down at
random with mean s |v_i| / m. The mean of C(v) is v. Bytes: `bits` bits a parameter, 4 bytes a bucket.

top_k (Stich et al. 2018): of v = omega_n - omega^t + e_n, the share of the entries with the largest absolute
values; ties go to the first. The client keeps the rest, e_n, for its next upload: 4 bytes a parameter. Bytes:
4 for each sent value, and the places as 32-bit numbers or as one bit a parameter, whichever is smaller.

BatchNorm statistics are sent as they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from genfl_mpi.federation.transforms.chain import compresses

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.transforms.chain import Sender

BUCKET = 512  # parameters that share a scale


def _quantized_bytes(parameters: int, config: Config) -> float:
    """Return the bytes of a quantized update."""
    return math.ceil(parameters * config.compression.bits / 8) + 4 * -(-parameters // BUCKET)


def _sparse_bytes(parameters: int, config: Config) -> float:
    """Return the bytes of the largest entries of an update and their places."""
    count = _entries(parameters, config)
    return 4 * count + min(4 * count, math.ceil(parameters / 8))


@compresses(_quantized_bytes)
def qsgd(trained: torch.Tensor, omega: torch.Tensor, client: Sender) -> torch.Tensor:
    """Quantize the update to `compression.bits` bits a parameter, without bias (Alistarh et al. 2017)."""
    update, count = trained - omega, len(trained)
    buckets = torch.nn.functional.pad(update, (0, -count % BUCKET)).view(-1, BUCKET)
    drawn = torch.from_numpy(client.rng.random(count, dtype="float32")).to(trained.device)
    levels = 2 ** (client.settings.compression.bits - 1) - 1
    # Per parameter; a bucket of zeros keeps its zeros.
    scale = buckets.abs().amax(1).repeat_interleave(BUCKET)[:count].double()
    exact = update.abs().double() * levels / torch.where(scale > 0, scale, 1.0)
    level = exact.floor() + (drawn < exact - exact.floor())
    return (omega.double() + update.sign() * scale * level / levels).float()


@compresses(_sparse_bytes, keeps=("residual",))
def top_k(trained: torch.Tensor, omega: torch.Tensor, client: Sender) -> torch.Tensor:
    """Send the largest `compression.share` of the update, and the rest with the next (Stich et al. 2018)."""
    wanted = trained + client.own["residual"]
    update = wanted - omega
    size, count = update.abs(), _entries(len(update), client.settings)
    smallest = size.topk(count).values[-1]
    chosen = size > smallest
    ties = (size == smallest).nonzero().flatten()[: count - int(chosen.sum())]
    chosen[ties] = True
    sent = torch.where(chosen, wanted, omega)
    client.own["residual"] = wanted - sent
    return sent


def _entries(parameters: int, config: Config) -> int:
    """Return the number of entries that top_k sends."""
    return max(1, round(config.compression.share * parameters))
