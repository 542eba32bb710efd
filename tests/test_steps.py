"""The training step: rates, what is drawn, what a captured one decides; that it trains as an eager one, on a GPU."""

import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stn_cifar import Config, build_model, distortions
from stn_cifar.steps import CapturedStep, Step, choose_precision, make_optimizer, make_step


def make(kind, data, **fields):
    config = Config(**{"dataset": "glyphs", "device": "cpu", "precision": "fp32", "batch_size": 16, **fields})
    model = build_model(config)
    train = data.train.to(config.torch_device())
    return kind(model, train, make_optimizer(model, config), config, config.precision)


def weights(step):
    return [p.detach().clone() for p in step.model.parameters()]


def indices(step, sizes):
    return torch.arange(sum(sizes), device=step.device).split(sizes)


@pytest.fixture
def without_graphs(monkeypatch):
    """No side streams, as on a CPU; gives the sizes of the batches that ran eagerly."""
    eager = []
    original = Step.__call__
    monkeypatch.setattr(Step, "__call__", lambda self, index: (eager.append(len(index)), original(self, index))[1])
    monkeypatch.setattr(CapturedStep, "_on_side_stream", lambda self, index: Step.__call__(self, index))
    return eager


def test_warm_up_and_ragged_batches_train_as_eager_steps_do(glyph_data, without_graphs):
    captured, eager = make(CapturedStep, glyph_data), make(Step, glyph_data)
    sizes = [16, 7, 16, 16]
    for step in (captured, eager):
        torch.manual_seed(0)  # dropout
        for index in indices(step, sizes):
            step(index)
    assert without_graphs == sizes * 2
    for one, other in zip(weights(captured), weights(eager), strict=True):  # fused, but with a tensor as learning rate
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_learning_rate_is_a_tensor_where_a_graph_will_read_it(glyph_data):
    """Also after a resume, which brings plain numbers: a graph would never see them change."""
    step = make(CapturedStep, glyph_data, learning_rate=0.02, localization_lr_scale=0.5)
    rates = [group["lr"] for group in step.optimizer.param_groups]
    assert all(isinstance(rate, torch.Tensor) for rate in rates)
    assert sorted({round(rate.item(), 6) for rate in rates}) == [0.01, 0.02]


def test_loss_scaling_and_graphs_exclude_each_other(glyph_data):
    config = Config(cuda_graph=True, dataset="glyphs", device="cpu")
    train = types.SimpleNamespace(images=types.SimpleNamespace(is_cuda=True))
    with pytest.raises(ValueError, match=r"^cuda_graph: True with precision fp16"):
        make_step(None, train, None, config, "fp16")


def test_full_batches_are_replayed_after_the_warm_up_and_ragged_ones_never(glyph_data, without_graphs, monkeypatch):
    step = make(CapturedStep, glyph_data)
    replayed = []

    class Graph:
        def replay(self):
            replayed.append(step.index.tolist())

    def capture(self, index):
        self.graph, self.index, self.result = Graph(), torch.zeros_like(index), (torch.tensor(1.5), torch.tensor(3))

    monkeypatch.setattr(CapturedStep, "_capture", capture)
    batches = indices(step, [16] * 5 + [7, 16])
    results = [step(index) for index in batches]
    assert without_graphs == [16, 16, 16, 7]
    assert replayed == [batches[k].tolist() for k in (3, 4, 6)]  # each with its own images, copied in
    step.result[0].fill_(9)
    assert results[4] == (1.5, 3)  # kept, although the next replay overwrites what the graph writes to


def test_learning_rates_that_are_tensors_are_changed_in_place(glyph_data):
    step = make(Step, glyph_data, schedule="linear", learning_rate=0.08, localization_lr_scale=0.5)
    rates = [torch.tensor(group["lr"]) for group in step.optimizer.param_groups]
    for group, rate in zip(step.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    step.set_progress(0.75)
    assert [rate.item() for rate in rates] == pytest.approx([group["initial_lr"] / 4 for group in
                                                             step.optimizer.param_groups])
    assert sorted({round(rate.item(), 6) for rate in rates}) == [0.01, 0.02]


def rate_at(done, **fields):
    """The classifier's learning rate, as a share of the config's, once the share `done` of the run lies behind."""
    step = types.SimpleNamespace(config=Config(**fields), told=torch.zeros(()), optimizer=types.SimpleNamespace(
        param_groups=[dict(lr=7.0, initial_lr=1.0), dict(lr=7.0, initial_lr=0.1)]))
    Step.set_progress(step, done)
    (fast, slow) = (group["lr"] for group in step.optimizer.param_groups)
    assert fast == 7 == slow or slow == pytest.approx(fast / 10)
    return fast


@given(done=st.floats(0, 1, exclude_max=True), warmup=st.floats(0.01, 0.9))
def test_the_rate_rises_in_a_straight_line_and_falls_in_another(done, warmup):
    rising = np.interp(done, [0, warmup, 1], [0, 1, 1])
    assert rate_at(done, warmup=warmup) == pytest.approx(rising, abs=1e-9)
    both = np.interp(done, [0, warmup, 1], [0, 1, 0])
    assert rate_at(done, warmup=warmup, schedule="linear") == pytest.approx(both, abs=1e-9)
    assert rate_at(done, schedule="linear") == pytest.approx(1 - done, abs=1e-12)
    assert rate_at(done) == 7  # without either it is left as it is


def test_distortions_are_drawn_anew_into_the_same_memory(glyph_data):
    step = make(Step, glyph_data, distortion="rts")
    step.draw(1, torch.Generator().manual_seed(0))
    before, address = step.drawn.theta.clone(), step.drawn.theta.data_ptr()
    step.draw(2, torch.Generator().manual_seed(1))
    assert step.drawn.theta.data_ptr() == address
    assert not torch.equal(step.drawn.theta, before)


@pytest.mark.parametrize("fields", [dict(flip=True), dict(shift=2), dict(cutout=3), dict(cutout=3, distortion="rts")])
def test_augmentation_is_drawn_anew_into_the_same_memory(glyph_data, fields):
    step = make(Step, glyph_data, **fields)
    step.draw(1, torch.Generator().manual_seed(0))
    before, address = step.augmentation.clone(), step.augmentation.data_ptr()
    step.draw(2, torch.Generator().manual_seed(1))
    assert step.augmentation.data_ptr() == address and not torch.equal(step.augmentation, before)
    assert step.augmentation.shape == (203, 5)
    step.draw(1, torch.Generator().manual_seed(0))
    assert torch.equal(step.augmentation, before)


def test_without_augmentation_the_poses_are_those_of_before_there_was_any(glyph_data):
    step = make(Step, glyph_data, distortion="rts")
    step.draw(3, torch.Generator().manual_seed(5))
    assert step.augmentation is None
    assert torch.equal(step.drawn.theta, distortions.draw("rts", 203, torch.Generator().manual_seed(5)).theta)


def test_a_cpu_has_eager_steps(glyph_data):
    config = Config(dataset="glyphs", device="cpu", precision="fp32")
    model = build_model(config)
    assert type(make_step(model, glyph_data.train, make_optimizer(model, config), config, "fp32")) is Step


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: captured steps against eager ones")
@pytest.mark.parametrize("fields", [dict(), dict(momentum=0.9, schedule="linear"), dict(distortion="rts"),
                                    dict(stn=False), dict(transform="tps"), dict(precision="bf16"),
                                    dict(flip=True, shift=2, cutout=8, warmup=0.2, label_smoothing=0.1),
                                    dict(model="compact", momentum=0.9, weight_decay=5e-4, flip=True),
                                    dict(model="light", transform="rotation", pose_cells=36, pose_weight=1.0,
                                         pose_curriculum=0.5, quarter_turns="localization")])
def test_captured_steps_train_as_eager_ones(glyph_data, fields):
    steps = [make(kind, glyph_data, device="cuda", cuda_graph=True, **fields) for kind in (Step, CapturedStep)]
    losses = []
    for step in steps:
        torch.manual_seed(0)  # dropout
        step.draw(1, torch.Generator().manual_seed(0))
        batches = indices(step, [16] * 12 + [7])
        row = []
        for number, index in enumerate(batches * 3):
            step.set_progress(number / 100)
            row.append(step(index)[0])
        losses.append(torch.stack(row))
    assert steps[1].graph  # or nothing was compared
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
    for captured, eager in zip(weights(steps[1]), weights(steps[0]), strict=True):
        torch.testing.assert_close(captured, eager, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: old cards emulate bf16 and must not get it")
def test_precision_on_this_card_is_one_it_has(glyph_data):
    config = Config(dataset="glyphs", device="cuda")
    chosen = choose_precision(build_model(config), glyph_data.train.images[:64].cuda(), config)
    assert chosen in (("fp32", "bf16") if torch.cuda.get_device_capability() >= (8, 0) else ("fp32", "fp16"))
