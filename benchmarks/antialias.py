"""Transforms that shrink: which way of preventing aliasing is measurably better, and what it costs.

The truth is a 16-fold supersampled warp: each output pixel the mean of the picture over its own footprint.
"""

import math
import statistics
import time

import torch

from stn_cifar import Config, transforms
from stn_cifar.sampler import sample

from .arms import load_training_data, synchronize

TRUTH = 16


def plain(images, theta, supersample=1):
    """The sampler, with `supersample` samples per output pixel and axis."""
    grid = transforms.FAMILIES["affine"].grid_of(theta, supersample * images.shape[-1])
    return sample(images, grid, "reflection", supersample=supersample)


def prefiltered(images, theta, kernel):
    """Blurred as wide as theta shrinks, each image by its own scale, then sampled plainly."""
    scale = torch.linalg.det(theta[:, :, :2]).abs().sqrt().clamp_min(1)
    place = torch.arange(images.shape[-1], dtype=torch.float32, device=images.device)
    distance = place[:, None] - place  # (W, W)
    weights = kernel(distance, scale.view(-1, 1, 1))
    weights = (weights / weights.sum(-1, keepdim=True))[:, None]  # (B, 1, W, W): a separable blur as a matrix
    return plain(weights @ images @ weights.transpose(2, 3), theta)


def gaussian(distance, scale):
    """Of the same variance as a footprint `scale` pixels wide."""
    return torch.exp(-distance.square() / (2 * scale.square() / 12))


def box(distance, scale):
    """The overlap of a pixel with a window `scale` pixels wide."""
    half = scale / 2
    return (torch.minimum(distance + 0.5, half) - torch.maximum(distance - 0.5, -half)).clamp_min(0)


WAYS = {
    "plain bilinear": plain,
    "supersample=2": lambda images, theta: plain(images, theta, 2),
    "supersample=3": lambda images, theta: plain(images, theta, 3),
    "supersample=4": lambda images, theta: plain(images, theta, 4),
    "gaussian blur, then bilinear": lambda images, theta: prefiltered(images, theta, gaussian),
    "box blur, then bilinear": lambda images, theta: prefiltered(images, theta, box),
}


def run(settings):
    """The table, and all raw values."""
    config = Config.preset("tutorial", **settings.fields)
    images = load_training_data(config, settings.antialias_images).images[:settings.antialias_images]
    images = images.to(config.torch_device()) / 255
    errors = {name: [] for name in WAYS}
    for scale in settings.scales:
        theta = poses(len(images), scale).to(images.device)
        # the truth takes 256 times the memory: a few at a time
        truth = torch.cat([plain(*part, TRUTH) for part in zip(images.split(16), theta.split(16), strict=True)])
        for name, way in WAYS.items():
            errors[name].append(255 * (way(images, theta) - truth).square().mean().sqrt().item())
        settings.say(f"antialias: scale {scale}")
    times = seconds(images[:settings.batch_size], settings)
    return dict(rounds=settings.warp_rounds, scales=settings.scales, rms_grey_levels=errors, seconds=times,
                tables=[table(errors, times, settings)])


def poses(count, scale):
    """theta (count, 2, 3) that shrinks by `scale`, under any angle and with any shift of up to a quarter half-width."""
    generator = torch.Generator().manual_seed(0)
    angle, x, y = torch.rand(3, count, generator=generator)
    log_scale = torch.full((count,), math.log(scale))
    params = torch.stack([2 * math.pi * angle, log_scale, 0.5 * x - 0.25, 0.5 * y - 0.25], dim=1)
    return transforms.FAMILIES["similarity"].theta(params)


def seconds(images, settings):
    """Way -> seconds of a warp with the gradient of theta, as training has it, one a round."""
    theta = poses(len(images), 2.0).to(images.device).requires_grad_()
    images, found = images.contiguous(memory_format=torch.channels_last), {name: [] for name in WAYS}
    calls = max(1, settings.warp_pixels // (4 * images[:, 0].numel()))
    for number in range(settings.warp_rounds + 2):
        for name, way in WAYS.items():
            started = time.perf_counter()
            for _ in range(calls):
                warped = way(images, theta)
                theta.grad = None
                warped.backward(warped.detach())
            synchronize(images.device)
            if number > 1:  # the first two warm up
                found[name].append((time.perf_counter() - started) / calls)
    return found


def table(errors, times, settings):
    """One row a way."""
    rows = []
    for name, values in errors.items():
        ratios = [t / p for t, p in zip(times[name], times["plain bilinear"], strict=True)]
        rows.append([name, *(f"{value:.2f}" for value in values), f"{statistics.median(ratios):.2f}"])
    return dict(title=f"Anti-aliasing: root mean square error in grey levels (of 255) where a transform shrinks "
                      f"{settings.antialias_images:,} images of {settings.data_name}, and time",
                columns=["sampling", *(f"scale {scale:g}" for scale in settings.scales), "time, forward and backward, "
                         "times plain"], rows=rows,
                note=f"The truth: {TRUTH} x {TRUTH} samples a pixel. Angles and shifts are random.")
