"""The optimizer and the learning rate over the run."""

import math

import torch

# share of the run after warm-up that is left, from 1 down to 0 -> share of the learning rate
SCHEDULES = dict(constant=lambda left: 1, linear=lambda left: left,
                 cosine=lambda left: 0.5 * (1 - math.cos(math.pi * left)))


def make_optimizer(model, learning_rate, localization_lr_scale=1.0, momentum=0.0, weight_decay=0.0,
                   fused=None):
    """SGD; the transformer slower by `localization_lr_scale`, biases and normalization not decayed.

    model: an STNClassifier. Nesterov where there is momentum.
    """
    groups = []
    for part, rate in ((model.classifier, learning_rate),
                       (model.transformer, learning_rate * localization_lr_scale)):
        for decay in (True, False):
            params = [p for p in part.parameters() if (p.ndim > 1) == decay]
            groups += [dict(params=params, lr=rate, initial_lr=rate,
                            weight_decay=weight_decay if decay else 0.0)] if params else []
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0,
                           fused=fused)


def set_learning_rate(optimizer, done, schedule="constant", warmup=0.0):
    """Set each group's learning rate; `done`, in [0, 1): how much of the run is over."""
    share = SCHEDULES[schedule]((1 - done) / (1 - warmup)) if done >= warmup else done / warmup
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
