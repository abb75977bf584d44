"""Floating-point operations of training, counted by torch from shapes alone, on the meta device."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def training_flops(module: nn.Module, shape: tuple[int, ...]) -> float:
    """Count the FLOPs of an SGD step on one sample, forward and backward; a multiply-add counts as two.

    module: maps (n, C, H, W) to logits; shape: (C, H, W). Counts convolutions and dense layers. Elementwise
    operations (activations, normalisation, the update itself) are not counted; they are less than a hundredth
    of these.
    """
    copied = copy.deepcopy(module).to("meta").train()
    counter = FlopCounterMode(display=False)
    with counter:  # two samples, because BatchNorm cannot normalise one
        F.cross_entropy(
            copied(torch.empty(2, *shape, device="meta")), torch.empty(2, dtype=torch.int64, device="meta")
        ).backward()
    return counter.get_total_flops() / 2
