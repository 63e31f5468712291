"""Optimisers and learning-rate schedules by configuration."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from equipoise.pipelines.config import Config, OptimizerConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    """The configured torch optimiser."""
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)


def build_schedule(optimizer: Optimizer, config: Config) -> LambdaLR:
    """The learning rate as a share of `optimizer.lr`, counted in optimiser steps: an epoch is 1 to 5 times as long under
    resampling, so epochs cannot measure it.
    """
    kind, total = config.schedule.kind, config.max_steps or 1
    warmup = int(config.schedule.warmup * total)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if kind == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return LambdaLR(optimizer, share)
