"""What trained networks are tested on besides the test images as the arm has them."""

from dataclasses import replace

from stn_cifar.distortions import DISTORTIONS

# Every 15 degrees: the eight multiples of 45 are among them, over which others average.
TURNS = tuple(range(-180, 181, 15))
# The same turns by other filters than training has (bicubic): what moves then is no pose.
FILTERED = {f"rotation, {name}": replace(DISTORTIONS["rotation"], **fields) for name, fields in {
    "nearest": dict(interpolation="nearest"), "bilinear": dict(interpolation="bilinear"),
    "4 x 4 samples": dict(supersample=4)}.items()}
# What a study of all angles tests besides; disc: upright pictures, shown as the turned ones are
TURNED_SUITES = ("rotation45", "rotation90", "disc", *FILTERED)
