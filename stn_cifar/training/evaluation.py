"""Evaluation, and test-time augmentation: ways to predict from several views of an image."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..data import Split
from ..diagnostics import evaluating
from ..pose_bins import AXES, true_params
from ..stn import STNClassifier, check_model


class Metrics(NamedTuple):
    """What `evaluate` measures."""

    loss: float  # mean cross-entropy, nats
    accuracy: float  # fraction in [0, 1]
    confusion: torch.Tensor  # (classes, classes) int64 counts, rows: true class, columns: predicted


def evaluate(model: STNClassifier, split: Split, batch_size: int = 250,
             predict: Callable[[STNClassifier, Split], torch.Tensor] | None = None) -> Metrics:
    """Metrics of `model` on `split` (a Split), dropout off; the model's training mode is restored.

    predict(model, batch: Split) -> logits (B, classes): test-time augmentation, below. It is
    another measurement: told by itself, and compared with a single view only at equal arithmetic.
    """
    check_model(model)
    if not isinstance(split, Split):
        raise ValueError(f"split: a {type(split).__name__}; must be a Split, such as data.test")
    classes = model.num_classes
    low, high = (label.item() for label in split.labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"labels: from {low} to {high}, but the model tells {classes} classes "
                         "apart, from 0; build_model(config, data) makes one for the data")
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}; must be 1 or more")
    loss = torch.zeros((), dtype=torch.float64, device=model.device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=model.device)
    with evaluating(model):
        for start in range(0, len(split), batch_size):
            batch = split[start:start + batch_size].to(model.device)
            logits = (predict(model, batch) if predict else model(batch.images)).float()
            loss += F.cross_entropy(logits, batch.labels, reduction="sum")
            confusion += torch.bincount(batch.labels * classes + logits.argmax(1),
                                        minlength=classes * classes)
    confusion = confusion.reshape(classes, classes).cpu()
    accuracy = confusion.diagonal().sum().item() / len(split)
    return Metrics(loss.item() / len(split), accuracy, confusion)


def mirrored_views(model, batch):
    """Mean logits of what the transformer hands on and of its mirror image: it aligns once."""
    warped = model.transformer(model.normalize(batch.images)).warped
    return (model.classifier(warped) + model.classifier(warped.flip(-1))) / 2


def flip_shift_views(model, batch):
    """Mean logits over six views: the image, one pixel up left, down right, each mirrored too.

    The unshifted pair counts as much as the shifted two together (Jordan 2024, arXiv 2404.00498).
    """
    images = batch.images
    pixels = torch.arange(images.shape[-1], device=images.device)
    # by index: F.pad takes no uint8 on some of the versions and devices that are served
    up_left, down_right = (images[..., at[:, None], at]
                           for at in ((pixels + 1).clamp(max=len(pixels) - 1),
                                      (pixels - 1).clamp(min=0)))
    views = ((0.25, images), (0.125, up_left), (0.125, down_right))
    return sum(weight * (model(view) + model(view.flip(-1))) for weight, view in views)


def where_unsure(predict, share=0.2):
    """A `predict`: the single view; `predict` for the `share` of a batch that is least certain.

    share: in (0, 1]. Certain: by the probability of the likeliest class. With a fifth of the
    images, six views cost 2.2 times the single one (after hiverge/cifar10-speedrun).
    """
    def predict_where_unsure(model, batch):
        logits = model(batch.images)
        certainty = logits.float().softmax(1).amax(1)
        unsure = certainty.topk(math.ceil(share * len(batch)), largest=False).indices
        return logits.index_copy(0, unsure, predict(model, batch[unsure]).to(logits.dtype))
    return predict_where_unsure


def top_k_poses(k):
    """A `predict`: the classes' mean probability over the k likeliest poses, weighted by theirs."""
    def predict(model, batch):
        bins = model.transformer.pose_bins
        if bins is None:
            raise ValueError(f"top_k_poses: {k} poses of a model that predicts one; it needs "
                             "pose_bins")
        _, alignment = model(batch.images, return_alignment=True)
        return _weighted(model, batch, bins.top_k(alignment.pose_logits, k))
    return predict


def rotated_views(k):
    """A `predict` for a model without a transformer: mean probability over k turns of the image."""
    def predict(model, batch):
        family, count = model.transformer.family, len(batch)
        if family.name not in AXES:
            raise ValueError(f"rotated_views: transform={family.name!r} has no angle of its own; "
                             f"must be one of {', '.join(map(repr, AXES))}")
        poses = []
        for turn in range(k):
            params = family.identity().to(model.device).repeat(count, 1)
            params[:, 0] = 2 * math.pi * turn / k
            poses.append((params, torch.full((count,), 1 / k, device=model.device)))
        return _weighted(model, batch, poses)
    return predict


def true_pose(model, batch):
    """A `predict`, the oracle: logits with every image's known pose undone by the true parameters.

    For the families of pose_bins.AXES, on a Split that knows its poses.
    """
    if batch.poses is None:
        raise ValueError("true_pose: the images' poses are unknown; needs a Split with poses")
    return model(batch.images, true_params(batch.poses, model.transformer.family.name))


def _weighted(model, batch, poses):
    """Logarithm of the classes' mean probability over `poses` [(params, weight (B,))]."""
    # float32: a weight of nothing must not become the logarithm of zero
    weighted = [weight.clamp_min(1e-12).log()[:, None]
                + model(batch.images, params).float().log_softmax(1) for params, weight in poses]
    total = sum(weight for _, weight in poses).clamp_min(1e-12).log()[:, None]
    return torch.stack(weighted).logsumexp(0) - total
