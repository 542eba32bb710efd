"""Images distorted in one call, as many tests want them."""

from stn_cifar.distortions import apply, sample_params


def distort(images, name, generator, **fixed):
    """(pictures in [0, 1], the theta that was applied)."""
    params = sample_params(name, len(images), generator, **fixed).to(images.device)
    return apply(images, params), params.theta
