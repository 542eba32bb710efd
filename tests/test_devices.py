"""CUDA without a GPU: training and evaluation on a fake CUDA device.

Fake tensors have shapes, types and devices, but no values: torch checks of every operation that its
arguments are on one device. So a constant left on the CPU is found, on any machine. The backward
pass alone is left out: torch's engine asks the driver for a stream.
"""

import contextlib

import pytest
import torch
from distorting import distort
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from stn_cifar import Config, build_model, distortions
from stn_cifar.classifier import CLASSIFIERS, Classifier
from stn_cifar.data import Split
from stn_cifar.presets import PRESETS
from stn_cifar.stn import assemble
from stn_cifar.training.captured import CapturedStep, make_step
from stn_cifar.training.evaluation import (
    flip_shift_views,
    mirrored_views,
    rotated_views,
    top_k_poses,
    true_pose,
)
from stn_cifar.training.loop import step_options
from stn_cifar.training.optim import make_optimizer, set_learning_rate
from stn_cifar.training.precision import DTYPES, autocast
from stn_cifar.training.step import Step
from stn_cifar.transforms import FAMILIES

CUDA = torch.device("cuda", 0)
SHAPE = (3, 32, 32)


@pytest.fixture
def fake_cuda(monkeypatch):
    """Within it tensors are fake, and torch believes that there is a CUDA device."""
    try:
        with FakeTensorMode():
            torch.zeros(2, device=CUDA)[torch.zeros(1, dtype=torch.int64, device=CUDA)]
    except RuntimeError as error:  # torch 2.4 does
        pytest.skip("this torch asks for a driver even where tensors are fake: "
                    + str(error).splitlines()[0])
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    # loss scaling looks at the gradients' values, to skip a step
    monkeypatch.setattr(torch.amp.GradScaler, "_maybe_opt_step",
                        lambda self, optimizer, *args, **kwargs: optimizer.step())
    # what was kept on the CPU before is no fake tensor, and welcome there
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def on_cuda(config):
    """The model of `config`; parameters and buffers are moved, as nn.Module.to does it."""
    model = assemble(config, SHAPE, 10)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().to(CUDA)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(CUDA))
    return model


def split(posed, count=20):
    return Split(torch.zeros(count, *SHAPE, dtype=torch.uint8, device=CUDA),
                 torch.zeros(count, dtype=torch.int64, device=CUDA),
                 torch.zeros(count, 2, 3, device=CUDA) if posed else None)


def train_step(config, precision, monkeypatch):
    """One step, forward and optimizer, as `fit` makes it; the model, loss and number right."""
    model, train = on_cuda(config), split(config.dataset == "glyphs")

    def backward(loss, *args, **kwargs):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    optimizer = make_optimizer(model, config.learning_rate, config.localization_lr_scale,
                               config.momentum, config.weight_decay)
    step = Step(model, train, optimizer, precision, **step_options(config))
    step.sample_epoch(1, config.seed, torch.Generator().manual_seed(0))
    return model, step(torch.arange(10, device=CUDA), config.teacher_forcing)


CONFIGS = {
    **{name: Config.preset(name, **({"width": 0.1} if name == "strong" else {}))
       for name in PRESETS},
    **{name: Config(transform=name) for name in FAMILIES},
}
MORE = {
    "iterations": Config(transform="projective", iterations=2, outside_weight=0.1,
                         scale_weight=0.1),
    "control": Config(model="p4", stn=False, output_size=24, distortion="rts"),
    "elastic": Config(transform="tps", distortion="elastic", supersample=2),
    "separable_p4": Config(model="separable_p4", width=0.5),
}


@pytest.mark.parametrize(("name", "precision"), [
    *((name, precision) for name in CONFIGS for precision in DTYPES),
    *((name, "bf16") for name in MORE)])
def test_training_and_evaluation_stay_on_the_cuda_device(name, precision, fake_cuda, monkeypatch):
    model, results = train_step((CONFIGS | MORE)[name], precision, monkeypatch)
    model.eval()
    with torch.no_grad(), autocast(CUDA, precision):
        logits, alignment = model(split(False).images, return_alignment=True)
    assert logits.dtype == DTYPES[precision] and alignment.grid.dtype == torch.float32
    tensors = [*results, logits, alignment.warped, alignment.theta, alignment.grid,
               *model.parameters(), *model.buffers()]
    assert {tensor.device for tensor in tensors} == {CUDA}
    assert all(isinstance(tensor, FakeTensor) for tensor in tensors)


@pytest.mark.parametrize(("predict", "name"), [
    (flip_shift_views, "tutorial"), (top_k_poses(2), "taught"), (true_pose, "taught"),
    (true_pose, "similarity"), (mirrored_views, "taught")])
def test_test_time_augmentation_stays_there_too(predict, name, fake_cuda):
    with torch.no_grad():
        assert predict(on_cuda(CONFIGS[name]).eval(), split(True)).device == CUDA
        control = on_cuda(Config(stn=False, transform="rotation")).eval()
        assert rotated_views(2)(control, split(False)).device == CUDA


def test_maps_are_unwarped_there(fake_cuda):
    model = on_cuda(Config(transform="projective")).eval()
    with torch.no_grad():
        _, alignment = model(split(False).images, return_alignment=True)
        maps = torch.zeros(20, 2, 8, 8, device=CUDA)
        assert model.transformer.unwarp(maps, alignment.theta, (32, 32)).device == CUDA


def test_a_constant_left_on_the_cpu_is_found(fake_cuda, monkeypatch):
    class Forgetful(nn.Module):
        def __init__(self, channels, size, classes, width):
            super().__init__()
            self.offset, self.layer = torch.zeros(classes), nn.Linear(channels, classes)

        def forward(self, images):
            return self.layer(images.mean((2, 3))) + self.offset

    monkeypatch.setitem(CLASSIFIERS, "forgetful", Classifier(Forgetful, "light"))
    with pytest.raises(RuntimeError, match=r"cuda:0.*cpu|cpu.*cuda:0"):
        train_step(Config(model="forgetful"), "fp32", monkeypatch)


def test_what_was_kept_meanwhile_serves_real_tensors_afterwards():
    """Every constant of grids, distortions and splines is made under a fake mode first."""
    size = 28  # of these there is nothing kept yet
    batch = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    for name in ("rts", "elastic", "projective"):
        family = FAMILIES[distortions.DISTORTIONS[name].family]
        with FakeTensorMode(allow_non_fake_inputs=True):
            generator = torch.Generator().manual_seed(0)
            fake, _ = distort(torch.zeros(2, 3, size, size), name, generator)
            family.grid(torch.zeros(1, family.num_params), (size, 31))
        assert isinstance(fake, FakeTensor)
        real, _ = distort(batch, name, torch.Generator().manual_seed(0))
        assert type(real) is torch.Tensor and real.isfinite().all() and real.std() > 0
        assert family.grid(family.identity()[None], (size, 31)).isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the real thing")
def test_a_real_cuda_device_gives_what_the_cpu_does():
    batch = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    for config in (CONFIGS | MORE).values():
        model = build_model(config.replace(device="cpu")).eval()
        expected = model(batch)
        found = model.cuda()(batch.cuda()).cpu()
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the real thing")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", CONFIGS | MORE)
def test_a_captured_step_does_what_the_step_does(name, precision):
    config = (CONFIGS | MORE)[name].replace(device="cuda", batch_size=32)
    images = torch.randint(256, (200, *SHAPE), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    poses = torch.eye(2, 3).expand(200, 2, 3) if config.dataset == "glyphs" else None
    train = Split(images, torch.arange(200) % 10, poses).to(CUDA)
    losses = {}
    for kind in (Step, CapturedStep):
        model = build_model(config).train()
        optimizer = make_optimizer(model, config.learning_rate, config.localization_lr_scale,
                                   config.momentum, config.weight_decay, fused=True)
        step = kind(model, train, optimizer, precision, **step_options(config))
        generator, found = torch.Generator().manual_seed(0), []
        torch.manual_seed(1)
        for epoch in (1, 2):  # poses of the second, in place
            step.sample_epoch(epoch, 0, generator)
            for number, index in enumerate(torch.arange(200, device=CUDA).split(32)):
                set_learning_rate(optimizer, number / 10, "linear")
                found.append(step(index, config.teacher_forcing * (1 - number / 10))[0])
        losses[kind] = torch.stack(found).cpu()
    assert step.graph is not None
    # fp32: cuDNN's way back is not the same twice
    torch.testing.assert_close(losses[CapturedStep], losses[Step],
                               **(dict(atol=0, rtol=0) if precision == "bf16" else
                                  dict(atol=0.05, rtol=0.05)))


def test_on_the_cpu_and_with_loss_scaling_no_step_is_captured(fake_cuda):
    model, optimizer = nn.Linear(2, 2), torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    on_cpu = Split(torch.zeros(2, *SHAPE, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    kinds = {(place, precision): type(make_step(model, train, optimizer, precision))
             for place, train in (("cpu", on_cpu), ("cuda", split(False)))
             for precision in ("fp32", "bf16", "fp16")}
    captured = {key for key, kind in kinds.items() if kind is CapturedStep}
    assert captured == {("cuda", "fp32"), ("cuda", "bf16")}


class Recorded:
    """Stands for torch.cuda's graph: capturing runs the step once, a replay runs it again."""

    def replay(self):
        self.run()


@pytest.fixture
def pretended_graphs(monkeypatch):
    """Streams and graphs without a GPU: the step runs where a graph would be replayed."""
    @contextlib.contextmanager
    def nothing(*args):
        yield

    class Stream:
        def wait_stream(self, other):
            pass

    for name, value in dict(device=nothing, stream=nothing, graph=nothing, Stream=Stream,
                            current_stream=Stream, CUDAGraph=Recorded).items():
        monkeypatch.setattr(torch.cuda, name, value)


def test_a_graph_reads_indices_rates_and_poses_where_they_are_renewed(pretended_graphs):
    """What replays read is written in place: index, teacher forcing, rates, the epoch's poses."""
    config = Config.preset("taught", device="cpu", width=0.25, localization_width=0.5,
                           batch_size=8, precision="fp32", shift=2)
    images = torch.randint(256, (60, *SHAPE), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    train = Split(images, torch.arange(60) % 10)
    model = build_model(config).train()
    step = CapturedStep(model, train, make_optimizer(model, 0.1, fused=True), "fp32",
                        augmentation=dict(flip=True, shift=2), distortion="rotation",
                        loss_weights=config.loss_weights())
    step.sample_epoch(1, 0, torch.Generator().manual_seed(0))
    where = [step.augmentation_params.data_ptr(), step.distortion_params.theta.data_ptr()]
    poses = step.distortion_params.theta.clone()
    batches = torch.arange(60).split(8)
    Recorded.run = lambda self: None
    for index in batches[:4]:  # three to warm up, one to capture
        step(index, 0.5)
    assert step.graph is not None and isinstance(step.optimizer.param_groups[0]["lr"], float)
    set_learning_rate(step.optimizer, 0.5, "linear")
    step(batches[5], 0.25)
    assert step.index.tolist() == list(range(40, 48)) and step.forcing.item() == 0.25
    assert [rate.item() for rate in step.rates] == pytest.approx([0.05] * len(step.rates))
    ragged, _ = step(batches[-1], 0.0)  # four images: eager
    assert ragged.isfinite() and step.index.tolist() == list(range(40, 48))
    step.sample_epoch(2, 0, torch.Generator().manual_seed(1))
    assert where == [step.augmentation_params.data_ptr(), step.distortion_params.theta.data_ptr()]
    assert not torch.equal(step.distortion_params.theta, poses)


def test_a_model_that_cannot_be_captured_trains_on_eagerly(pretended_graphs, monkeypatch, capsys):
    config = Config.preset("tutorial", device="cpu", batch_size=8, precision="fp32")
    train = Split(torch.zeros(60, *SHAPE, dtype=torch.uint8), torch.arange(60) % 10)
    model = build_model(config).train()
    step = CapturedStep(model, train, make_optimizer(model, 0.1, fused=True), "fp32")

    def refuse(self):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(CapturedStep, "_capture", refuse)
    losses = [step(index)[0] for index in torch.arange(48).split(8)]
    assert torch.stack(losses).isfinite().all() and step.graph is None
    assert capsys.readouterr().out.count("cannot be captured") == 1
