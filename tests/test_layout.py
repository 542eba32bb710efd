"""Who may import whom: the rooms of the house stand in one order, and none looks upwards."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "stn_cifar"
# from the ground up: a room may import those before it, and its own
ORDER = (
    ("files", "console", "seeding", "fields"),
    ("transforms", "matrices", "sampler", "p4"), ("pose_bins",), ("spatial_transformer",),
    ("classifier",), ("localization",), ("distortions",), ("presets",),
    ("training.precision", "training.optim", "training.losses"), ("config",), ("data",), ("stn",),
    ("diagnostics",), ("training", "plots"), ("notebook",), ("experiment",), ("__main__",),
)
TORCH_ONLY = ("spatial_transformer", "transforms", "matrices", "sampler", "pose_bins")


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(tree, module, is_package):
    """Absolute names of the modules that `tree` imports, functions' own imports too."""
    here = ["stn_cifar", *filter(None, module.split("."))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[:len(here) + is_package - node.level] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            # `from .. import a` may name a module or something in one
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room(name):
    """Place in ORDER of the module `name`, without "stn_cifar."; None for names of the package."""
    for length in (2, 1):
        part = ".".join(name.split(".")[:length])
        for place, rooms in enumerate(ORDER):
            if part in rooms:
                return place, part
    return None


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))
           if path != PACKAGE / "__init__.py"}


def imported_by(module):
    path = MODULES[module]
    return list(imports(ast.parse(path.read_text()), module, path.name == "__init__.py"))


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_stands_below_it(module):
    place, own = room(module)
    for name in imported_by(module):
        if name.startswith("stn_cifar."):
            found = room(name.removeprefix("stn_cifar."))
            assert found is None or found[1] == own or found[0] < place, name


def test_the_transformer_needs_torch_alone():
    for module in TORCH_ONLY:
        for name in imported_by(module):
            top, _, rest = name.partition(".")
            mine = top == "stn_cifar" and rest.split(".")[0] in TORCH_ONLY
            assert mine or top in ("torch", "math", "typing", "dataclasses", "functools",
                                   "operator", "collections", "numbers"), f"{module} imports {name}"


def test_training_and_plots_never_meet_and_nothing_knows_the_experiments():
    for module in MODULES:
        names = imported_by(module)
        assert not any(name.split(".")[0] in ("experiments", "tests") for name in names), module
        if module.startswith("training"):
            assert not any(name.startswith("stn_cifar.plots") for name in names), module
        if module.startswith("plots"):
            assert not any(name.startswith("stn_cifar.training") for name in names), module


def test_below_build_model_load_data_and_fit_nothing_knows_the_config():
    """Whoever takes a Config: the door of each wing, and what puts a whole run together."""
    doors = {"stn", "data.dataset", "training.loop", "training.checkpoints", "experiment",
             "__main__"}
    assert {module for module in MODULES
            if "stn_cifar.config.Config" in imported_by(module)} == doors


def test_it_would_be_seen():
    """The control: these checks find an import that goes the wrong way."""
    upwards = ast.parse("def f():\n    from ..plots import film\n    import experiments.run")
    names = set(imports(upwards, "training.loop", is_package=False))
    assert names == {"stn_cifar.plots.film", "experiments.run"}
    assert room("plots.film")[0] == room("training.loop")[0]  # beside it, so not below it
