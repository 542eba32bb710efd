"""Ways of training, each in a process: python -m experiments.bench.arms '{"arm": "ours", ...}'.

An arm trains so many steps again and again: each time is a round, and the first is the warm-up. The
process prints the result of the warm-up, and then, for each line that it reads, one more round's.
"""

import json
import os
import sys
import time
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from stn_cifar import Config, Data, Split, build_model, fit, load_data
from stn_cifar.data import glyphs

FOLDER = "cifar-10-batches-py"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # as every tutorial has them


def ours(answer, steps, count, **fields):
    """The package's `fit`; an epoch is a round, after which answer(result) waits for the next."""
    config = Config.preset("tutorial", epochs=10**6, **fields)
    data = training_data(config, count)[:steps * config.batch_size]
    model, before = build_model(config), peak_memory()

    def epoch_done(model, history):
        answer(dict(seconds=history[-1]["seconds"], precision=history[-1]["precision"],
                    before_mb=before, peak_mb=peak_memory(), images=len(data)))

    fit(model, Data(data, classes=glyphs.CLASSES, name="benchmark"), config,
        on_epoch_end=epoch_done)


def plain(steps, count, workers=0, persistent=False, channels_last=False, item=True, **fields):
    """The loop as the PyTorch tutorials write it, a generator of rounds.

    PIL images through torchvision's transforms and a DataLoader. The batches go on from round to
    round, so that starting an epoch, and its workers, costs nothing here.
    """
    config = Config.preset("tutorial", **fields)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    device = config.torch_device()
    model = build_model(config).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    batches = loader_batches(config, count, workers, persistent, layout)
    while True:
        synchronize(device)
        waited, total, started = 0.0, 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            images, labels = next(batches)
            waited += time.perf_counter() - asked
            optimizer.zero_grad()
            # normalized by the loader, as the tutorials do it
            logits = model.classifier(model.transformer(images).warped)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            total += loss.item() if item else loss.detach()
        float(total)
        synchronize(device)
        yield dict(seconds=time.perf_counter() - started, data_seconds=waited, precision="fp32",
                   peak_mb=peak_memory(), images=steps * config.batch_size)


class Pictures(Dataset):
    """Glyphs as torchvision's CIFAR10 holds its images: made into PIL images one by one."""

    def __init__(self, split, transform):
        self.data = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.targets, self.transform = split.labels.tolist(), transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def loader_batches(config, count, workers, persistent, layout):
    """Whole batches without end from a DataLoader, normalized by torchvision."""
    device = config.torch_device()
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    if config.dataset == "cifar10":
        dataset = datasets.CIFAR10(config.data_root, train=True, transform=transform)
    else:
        dataset = Pictures(training_data(config, count), transform)
    loader = DataLoader(dataset, batch_size=config.batch_size, shuffle=True, num_workers=workers,
                        persistent_workers=persistent, pin_memory=device.type == "cuda",
                        drop_last=True)
    while True:
        for images, labels in loader:
            yield images.to(device, memory_format=layout), labels.to(device)


@lru_cache(maxsize=1)
def training_data(config, count):
    """The training images of CIFAR-10, or `count` glyphs."""
    if config.dataset == "cifar10":
        return load_data(config).train
    return Split(*glyphs.make_glyphs(count, seed=0))


def find_data():
    """Config fields for the data to measure with: CIFAR-10 where it lies unpacked, else glyphs."""
    for place in (os.environ.get("STN_CIFAR_DATA"), "data"):
        if place and (Path(place) / FOLDER / "data_batch_1").is_file():
            return dict(dataset="cifar10", data_root=str(Path(place).resolve()))
    return dict(dataset="glyphs")


def synchronize(device):
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory():
    """The most memory this process has held, with what its workers do not share, in MB."""
    try:
        kilobytes = int(_entry("/proc/self/status", "VmHWM"))
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            kilobytes += sum(int(_entry(f"/proc/{child}/smaps_rollup", kind))
                             for kind in ("Private_Clean", "Private_Dirty"))
    except (OSError, StopIteration):  # not Linux
        return None
    device = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else 0
    return kilobytes / 1024 + device


def _entry(path, name):
    lines = Path(path).read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name + ":"))


def main():
    options = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the package prints is of no interest here

    def answer(result):
        """Hand over a round's result, and wait until the next is asked for."""
        print(json.dumps(result), file=answers, flush=True)
        if not sys.stdin.readline():  # nobody asks any more
            os._exit(0)  # at once: a loader's workers would take their time

    if threads := options.pop("threads", None):
        torch.set_num_threads(threads)
    if options.pop("arm") == "ours":
        ours(answer, **options)
    for result in plain(**options):
        answer(result)


if __name__ == "__main__":
    main()
