"""Floating-point operations of training, counted by torch from the shapes alone: nothing is computed."""

import copy

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode


def of_training(module, shape):
    """FLOPs of a step of SGD on one sample, forwards and backwards; a multiplication with its addition are two.

    module: maps (n, C, H, W) to logits; shape: (C, H, W). Convolutions and dense layers are counted; what is done to each value
    alone (activations, normalisation, the step itself) is less than a hundredth of them.
    """
    there = copy.deepcopy(module).to("meta").train()
    counter = FlopCounterMode(display=False)
    with counter:  # two samples, because BatchNorm cannot normalise one
        F.cross_entropy(
            there(torch.empty(2, *shape, device="meta")), torch.empty(2, dtype=torch.int64, device="meta")
        ).backward()
    return counter.get_total_flops() / 2
