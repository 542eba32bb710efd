"""From a cold process to the first training step done: python -m benchmarks.startup ours|tutorial '{fields}'.

Prints the seconds that importing, data and the first step took, one after the other.
"""

import json
import sys
import time


def ours(mark, fields):
    """As the command line and the notebook do it; fit's choice of the precision is part of the first step."""
    from stn_cifar import Config, build_model, fit, load_data
    from stn_cifar.data import CIFAR_CLASSES, Data, Split
    from stn_cifar.glyphs import make_glyphs
    mark("imports")
    config = Config.preset("tutorial", epochs=1, **fields)
    train = load_data(config).train if config.dataset == "cifar10" else Split(*make_glyphs(1000, seed=0))
    one = train[:config.batch_size].to(config.torch_device())
    mark("data")
    fit(build_model(config), Data(one, None, one, CIFAR_CLASSES, "benchmark"), config)
    mark("first step")


def tutorial(mark, fields):
    """As the tutorials do it; no worker processes, which would only take longer to start."""
    import matplotlib.pyplot  # noqa: F401
    import torch
    import torch.nn.functional as F

    from benchmarks import arms
    from stn_cifar import Config, build_model
    mark("imports")
    config = Config.preset("tutorial", **fields)
    device, layout = config.torch_device(), torch.contiguous_format
    images, labels = next(arms.loader_batches(config, 1000, 0, False, device, layout))
    mark("data")
    model = build_model(config).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    F.cross_entropy(model.classifier(model.align(images).warped), labels).backward()
    optimizer.step()
    arms.synchronize(device)
    mark("first step")


def main():
    marks, last = {}, time.perf_counter()

    def mark(name):
        nonlocal last
        marks[name], last = time.perf_counter() - last, time.perf_counter()

    answers, sys.stdout = sys.stdout, sys.stderr  # what is printed on the way is of no interest
    dict(ours=ours, tutorial=tutorial)[sys.argv[1]](mark, json.loads(sys.argv[2]))
    print(json.dumps(marks), file=answers)


if __name__ == "__main__":
    main()
