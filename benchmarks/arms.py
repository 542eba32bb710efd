"""Ways of training, run in processes of their own: python -m benchmarks.arms '{"name": {"arm": "ours", ...}}'.

An arm trains so many steps again and again: each time is a round, and the first is the warm-up. The process prints
the results of the warm-up, and then, for each name that it reads, the result of one more round of that arm.
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

from stn_cifar import Config, build_model, fit, load_data
from stn_cifar.data import FOLDER_NAME, Data, Split
from stn_cifar.glyphs import CLASSES, make_glyphs
from stn_cifar.stn import CIFAR10_MEAN, CIFAR10_STD


def ours(turn, steps, count, noise=False, **fields):
    """The package's own `fit`; an epoch of it is a round, after which turn(result) waits until the next is asked for.

    noise: made-up pictures of any size: what they show has no influence on speed, and no file takes memory.
    """
    config = Config.preset("tutorial", epochs=10**6, **fields)
    if not noise:
        data = load_training_data(config, count)
    else:
        data = Split(torch.randint(0, 256, (count, 3, config.image_size, config.image_size), dtype=torch.uint8),
                     torch.randint(0, 10, (count,)))
    split = data[:steps * config.batch_size].to(config.torch_device())
    model = build_model(config)
    before = peak_memory()

    def epoch_done(model, history):
        started = time.perf_counter()  # the work on data alone, once more: inside the step it cannot be told apart
        for index in torch.randperm(len(split)).to(split.images.device).split(config.batch_size):
            model.normalize(split.images[index]), split.labels[index]
        synchronize(split.images.device)
        waited = time.perf_counter() - started
        turn(dict(seconds=history[-1]["seconds"], data_seconds=waited, precision=history[-1]["precision"],
                  before_mb=before, peak_mb=peak_memory(), images=len(split)))

    fit(model, Data(split, None, split, CLASSES, "benchmark"), config, on_epoch_end=epoch_done)


def plain(steps, count, data="loader", workers=0, persistent=False, channels_last=False, stored_last=False,
          precision="fp32", flush=False, item=True, set_to_none=True, sgd=None, compiled=False, threads=None,
          **fields):
    """The loop as the PyTorch tutorials write it, a generator of rounds; each option might make it faster.

    data: "loader" (PIL images through torchvision's transforms and a DataLoader) or "resident" (tensors on the device).
    stored_last: resident images lie in memory channels last. sgd: more arguments of torch.optim.SGD.
    The batches go on from round to round, so that starting an epoch, and its workers, costs nothing here.
    """
    config = Config.preset("tutorial", **fields)
    device, layout = config.torch_device(), torch.channels_last if channels_last else torch.contiguous_format
    model = build_model(config).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate, **(sgd or {}))
    if data == "loader":
        batches = loader_batches(config, count, workers, persistent, device, layout)
    else:
        split = load_training_data(config, count).to(device)
        images = split.images.contiguous(memory_format=torch.channels_last) if stored_last else split.images
        batches = resident_batches(model, images, split.labels, config.batch_size)

    def predict(images):
        return model.classifier(model.align(images).warped)

    predict = torch.compile(predict) if compiled else predict
    first_step, all_threads = None, torch.get_num_threads()
    dtype = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)[precision]
    while True:
        torch.set_num_threads(threads or all_threads)  # anew each round: other arms share the process
        torch.set_flush_denormal(flush)
        synchronize(device)
        waited, total, started = 0.0, 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            images, labels = next(batches)
            waited += time.perf_counter() - asked
            optimizer.zero_grad(set_to_none=set_to_none)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                logits = predict(images)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() if item else loss.detach()
            if first_step is None:
                synchronize(device)
                first_step = time.perf_counter() - started
        float(total)
        synchronize(device)
        seconds = time.perf_counter() - started
        torch.set_num_threads(all_threads)
        yield dict(seconds=seconds, data_seconds=waited, precision=precision, peak_mb=peak_memory(),
                   images=steps * config.batch_size, first_step_seconds=first_step)


class Pictures(Dataset):
    """The built-in glyphs as torchvision's CIFAR10 holds its images: an array, made into PIL images one by one."""

    def __init__(self, split, transform):
        self.data, self.targets = split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.tolist()
        self.transform = transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def tutorial_dataset(config, count):
    """CIFAR-10 as every tutorial loads it."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)])
    if config.dataset == "cifar10":
        return datasets.CIFAR10(config.data_root, train=True, transform=transform)
    return Pictures(Split(*make_glyphs(count, seed=0)), transform)


def loader_batches(config, count, workers, persistent, device, layout):
    """Batches without end from a DataLoader, normalized by torchvision."""
    loader = DataLoader(tutorial_dataset(config, count), batch_size=config.batch_size, shuffle=True,
                        num_workers=workers, persistent_workers=persistent, pin_memory=device.type == "cuda")
    while True:
        for images, labels in loader:
            if len(labels) == config.batch_size:  # a round is so many whole batches
                yield images.to(device, memory_format=layout), labels.to(device)


def resident_batches(model, images, labels, batch_size):
    """Batches without end from tensors on the device, normalized as whole batches."""
    while True:
        for index in torch.randperm(len(images), device=images.device).split(batch_size):
            if len(index) == batch_size:
                yield model.normalize(images[index]), labels[index]


def find_data():
    """Fields of Config for the data to measure with: CIFAR-10 where it lies unpacked, the glyphs where it does not."""
    for place in (os.environ.get("STN_CIFAR_DATA"), "data"):
        if place and (Path(place) / FOLDER_NAME / "data_batch_1").is_file():
            return dict(dataset="cifar10", data_root=str(Path(place)))
    return dict(dataset="glyphs")


@lru_cache(maxsize=1)
def load_training_data(config, count):
    """The training images of `config.dataset`, of the glyphs only `count`."""
    return load_data(config).train if config.dataset == "cifar10" else Split(*make_glyphs(count, seed=0))


def synchronize(device):
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory():
    """The most memory this process has held, plus what its workers hold that is not shared with it, in MB."""
    try:
        peak = int(_entry("/proc/self/status", "VmHWM"))
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            peak += sum(int(_entry(f"/proc/{child}/smaps_rollup", kind)) for kind in ("Private_Clean", "Private_Dirty"))
        kilobytes = peak
    except (OSError, StopIteration):  # not Linux: without the workers
        import resource
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    device = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else 0
    return kilobytes / 1024 + device


def _entry(path, name):
    lines = Path(path).read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name + ":"))


def main():
    arms = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the package prints is of no interest here

    def answer(result):
        """Hand over a result; the name that is asked for next."""
        print(json.dumps(result), file=answers, flush=True)
        if not (line := sys.stdin.readline()):  # nobody asks any more
            os._exit(0)  # at once: loaders' workers would take their time
        return line.strip()

    kinds = [options.pop("arm") for options in arms.values()]
    if kinds == ["ours"]:  # fit keeps control, so this one cannot share its process
        ours(answer, **next(iter(arms.values())))
    rounds = {name: plain(**options) for name, options in arms.items()}
    name = answer([next(each) for each in rounds.values()][-1])
    while True:
        name = answer(next(rounds[name]))


if __name__ == "__main__":
    main()
