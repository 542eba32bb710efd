"""One training step: pick images, augment, distort, forward, backward, update."""

import torch
import torch.nn.functional as F

from .. import distortions
from ..data import augment
from ..pose_bins import true_params
from .losses import Known, transformer_loss
from .precision import autocast


class Step:
    """A training step of `model` on the Split `train`; call it with an index tensor.

    augmentation: options of augment.sample_params; distortion: its name, or None; loss_weights:
    {name in losses.LOSSES: weight}.
    """

    def __init__(self, model, train, optimizer, precision="fp32", augmentation=None,
                 distortion=None, label_smoothing=0.0, loss_weights=None, max_scale=1.5):
        self.model, self.train, self.optimizer = model, train, optimizer
        self.precision, self.device = precision, train.images.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.augmentation, self.distortion = augmentation or {}, distortion
        self.label_smoothing, self.max_scale = label_smoothing, max_scale
        self.loss_weights = loss_weights or {}
        self.augmentation_params = self.distortion_params = None  # one row for each image

    def sample_epoch(self, epoch, seed, generator):
        """Sample augmentation and distortion of every training image from a CPU generator."""
        size = self.train.images.shape[-1]
        canvas = distortions.row_of(self.distortion).canvas_size(size) if self.distortion else size
        params = augment.sample_params(self.train.images, epoch, seed, generator, canvas=canvas,
                                       **self.augmentation)
        self.augmentation_params = params if params is None else params.to(self.device)
        if self.distortion is not None:
            self.distortion_params = distortions.sample_params(
                self.distortion, len(self.train), generator).to(self.device)

    def __call__(self, index, teacher_forcing=0.0):
        """Train on the images at `index`, int64 (B,) on the device.

        teacher_forcing: probability that an image's true pose is undone, with pose bins. Returns
        the batch's loss and its number of right predictions, 0-d tensors on the device: nothing is
        waited for.
        """
        images, labels, known = self._batch(index)
        with autocast(self.device, self.precision):
            logits, alignment = self.model(images, known.true_params, teacher_forcing,
                                           return_alignment=True)
            logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        loss = loss + transformer_loss(alignment, known, self.loss_weights)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), (logits.argmax(1) == labels).sum()

    def _batch(self, index):
        """(images, labels, Known) of the training images at `index`, augmented and distorted."""
        train = self.train
        images, labels = train.images[index], train.labels[index]
        applied = None if train.poses is None else train.poses[index]
        augmentation = self.augmentation_params
        if augmentation is not None:
            images = augment.apply(images, augmentation[index])
        if self.distortion_params is not None:
            params = self.distortion_params[index]
            images, applied = distortions.apply(images, params), params.theta
        if augmentation is not None:  # the hole last, or it would give the pose away
            cutout = self.augmentation.get("cutout", 0)
            images = augment.cut_out(images, augmentation[index], cutout)
        bins = self.model.transformer.pose_bins
        undone_by = true_params(applied, bins.transform) if bins else None
        return images, labels, Known(applied, undone_by, bins, self.max_scale)
