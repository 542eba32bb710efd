"""The transformer and the model in other runtimes: torch.export, torch.compile, ONNX."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from stn_cifar import Config, SpatialTransformer, build_model
from stn_cifar.pose_bins import PoseBins
from stn_cifar.transforms import FAMILIES

# 2.4 cannot export what uses autocast; ONNX's operator set 20, of GridSample, came with 2.7
recent = pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch.export needs torch 2.7")
# some versions of torch's exporter to ONNX warn of their own calls
theirs = pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")


def rng(seed):
    return torch.Generator().manual_seed(seed)


def looking(model, std=0.3):
    """`model` with a localization network that sees something else in every image."""
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.normal_(last.weight, std=std, generator=rng(1))
    return model.eval().requires_grad_(False)


def transformer(name, outputs=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
                                nn.Flatten(), nn.Linear(64, outputs or FAMILIES[name].num_params))
    return looking(SpatialTransformer(network, name, **options))


def model(**fields):
    built = build_model(Config(device="cpu", **fields)).eval().requires_grad_(False)
    if built.config.stn:
        looking(built.transformer, 0.1)
    return built


def images(count, dtype=torch.float32, size=(32, 32)):
    batch = torch.rand(count, 3, *size, generator=rng(2))
    return batch if dtype.is_floating_point else (255 * batch).to(dtype)


TRANSFORMERS = {
    **{name: lambda name=name: transformer(name) for name in ("rotation", "projective", "tps")},
    "iterations": lambda: transformer("projective", iterations=2, padding_mode="reflection"),
    "supersampled": lambda: transformer("similarity", supersample=2, output_size=20,
                                        padding_mode="border"),
    "pose_bins": lambda: transformer("rotation", 12, pose_bins=PoseBins("rotation", 12)),
}
MODELS = {
    "tutorial": lambda: model(),
    "tps": lambda: model(model="separable", transform="tps"),
    "pose_bins": lambda: model(model="light", width=0.5, localization="p4", transform="rotation",
                               pose_bins=12, pose_weight=1.0, localization_width=0.5),
    "control": lambda: model(stn=False),
    "separable_p4": lambda: model(model="separable_p4", width=0.5),
}


def tensors(output):
    """What a transformer or a model gives, without None."""
    output = (output,) if isinstance(output, torch.Tensor) else output
    return [tensor for tensor in output if tensor is not None]


def agree(found, expected, tolerance=0):
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def exported(module, example):
    batch = torch.export.Dim("batch", min=1, max=1024)
    return torch.export.export(module, (example,), dynamic_shapes=({0: batch},))


# sizes of their own, so that nothing is kept for them yet
SIZES = {name: (24, 20 + number) for number, name in enumerate(TRANSFORMERS)}


@recent
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_is_exported_with_a_dynamic_batch_and_works_afterwards(name):
    module, size = TRANSFORMERS[name](), SIZES[name]
    program = exported(module, images(3, size=size)).module()
    for count in (1, 3, 7):  # the module itself works still: nothing of the tracing was kept
        agree(program(images(count, size=size)), module(images(count, size=size)), 1e-6)


@recent
@pytest.mark.parametrize(("name", "dtype"), [
    ("tutorial", torch.uint8), ("tutorial", torch.float32), ("tps", torch.uint8),
    ("pose_bins", torch.float32), ("control", torch.float32)])
def test_a_model_is_exported_with_a_dynamic_batch_and_works_afterwards(name, dtype):
    module = MODELS[name]()
    program = exported(module, images(3, dtype)).module()
    for count in (1, 7):
        agree(program(images(count, dtype)), module(images(count, dtype)), 1e-5)
    with pytest.raises(ValueError, match=r"^images: "):  # checks stepped aside only meanwhile
        module(images(1) + 1)


@pytest.mark.parametrize("name", ["tps", "pose_bins"])
def test_a_transformer_compiles_as_one_graph(name):
    module, size = TRANSFORMERS[name](), (26, *SIZES[name][1:])
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for count in (3, 7):
        agree(compiled(images(count, size=size)), module(images(count, size=size)), 1e-6)


def test_a_model_compiles_as_one_graph_for_evaluation_and_training():
    module = MODELS["tutorial"]()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    agree(compiled(images(3)), module(images(3)), 1e-5)
    for layer in module.modules():
        if isinstance(layer, nn.Dropout | nn.Dropout2d):
            layer.p = 0.0
    module.train().requires_grad_(True)
    found, expected = (torch.autograd.grad(m(images(3, torch.uint8)).square().sum(),
                                           list(module.parameters()))
                       for m in (compiled, module))
    agree(found, expected, 1e-4)


def run_onnx(module, example, batch):
    """Outputs of `module`, exported for `example`, on `batch`, by onnx's own implementation."""
    import onnx.reference

    program = torch.onnx.export(module, (example,), dynamo=True, opset_version=20, verbose=False,
                                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},))
    assert program.model.opset_imports[""] == 20
    file = io.BytesIO()
    program.save(file)
    session = onnx.reference.ReferenceEvaluator(onnx.load_from_string(file.getvalue()))
    return session.run(None, {session.input_names[0]: batch.numpy()})


@recent
@theirs
@pytest.mark.parametrize("name", ["projective", "tps"])
def test_a_transformer_is_the_same_in_onnx(name):
    module, batch = TRANSFORMERS[name](), images(1, size=(14, 18))
    expected = tensors(module(batch))  # splines: before, as their weights are solved for once, and
    found = run_onnx(module, images(2, size=(14, 18)), batch)  # ONNX solves no linear equations
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    agree(module(batch), expected)


@recent
@theirs
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_model_is_the_same_in_onnx(dtype):
    module = MODELS["tutorial"]()
    batch, fresh = images(1, dtype), build_model(module.config).eval()
    expected = module(batch)
    assert (expected - fresh(batch)).abs().max() > 1e-3  # the transformer does something
    np.testing.assert_allclose(run_onnx(module, images(2, dtype), batch)[0], expected, atol=1e-4)
    assert torch.equal(module(batch), expected)
