"""python -m stn_cifar: the experiment without a notebook."""

import argparse
import dataclasses
import importlib
import shlex
import sys
import time
import types
import typing
from functools import partial
from pathlib import Path

from . import __version__, diagnostics, distortions, experiment, plots
from .config import PRESETS, Config
from .console import say
from .data import DataError, load_data
from .data.dataset import NAMES
from .data.suites import suite_file
from .files import check_new, check_writable, path_argument, write_whole
from .stn import build_model
from .training.checkpoints import CheckpointError, find_checkpoint, model_of
from .training.checks import for_data
from .training.evaluation import evaluate
from .training.loop import NonFiniteLoss, fit

EXAMPLES = """examples:
  python -m stn_cifar train                                  the experiment: CIFAR-10, 50 epochs
  python -m stn_cifar train --epochs 2                       a first look
  python -m stn_cifar train --no-stn                         the control: the classifier alone
  python -m stn_cifar evaluate --checkpoint checkpoints/RUN  a trained model, measured again
  python -m stn_cifar export-suite rotation FILE.npz         rotated CIFAR-10, frozen, for others
  python -m stn_cifar notebook stn_alone.ipynb               the notebook as one file
in a clone of the repository also:
  python -m stn_cifar study ladder                           many runs that answer one question
  python -m stn_cifar report                                 bring the tables of results up to date
  python -m stn_cifar bench                                  measure speed
"""
STOPPED = 130  # exit status, as of a program that Ctrl-C has ended
HORSE = 13  # a test image that fills its picture: good to see what a warp does


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] in (["study"], ["report"], ["bench"]):
            return _experiments(argv)
        args = vars(_parser().parse_args(argv))
        return args.pop("command")(**args) or 0
    except (ValueError, OSError, CheckpointError, DataError, NonFiniteLoss, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


def train(preset: str, results: Path, images: Path, checkpoint_dir: Path | None,
          **overrides) -> int:
    """Train, measure, write the record, the model and the figures, and say where they are."""
    config = Config.preset(preset, **overrides)
    data = load_data(config)
    config = for_data(config, data)
    label = run_label(config, data.name)
    if checkpoint_dir is None:
        checkpoint_dir = Path("checkpoints", f"{label}-{time.strftime('%Y%m%d-%H%M%S')}")
    for folder in (results, images, checkpoint_dir):  # before hours of training, not after
        check_writable(folder)
    say(f"every epoch's end is kept in {checkpoint_dir}; --checkpoint-dir goes on from it")
    model = build_model(config, data)
    film = plots.Film(model, data)
    history = fit(model, data, config, checkpoint_dir, film)
    if not history:  # stopped before there was anything to measure
        return STOPPED
    record = experiment.record(config, data, model, history)
    test = record["test"]
    say(f"test accuracy {test['accuracy']:.1%} on {test['images']:,} images of {data.name}; train "
        f"{record['train']['accuracy']:.1%} (dropout off); {record['parameters']:,} parameters; "
        f"{record['training_seconds']:.0f} s on {record['machine']}")
    name = label if record["finished"] else f"{label}-stopped"  # takes no finished run's place
    say(f"record: {write_whole(results / f'{name}.json', experiment.to_json(record))}")
    say(f"model: {checkpoint_dir} (python -m stn_cifar evaluate --checkpoint "
        f"{shlex.quote(str(checkpoint_dir))})")
    film(model, record["history"])  # of a run that was complete before: the one frame to be had
    draw = _figures(model, data, record["test"]["confusion"])
    draw["curves"] = lambda title: plots.curves(record["history"], title,
                                                record["test"]["accuracy"])
    if len(film.frames) > 2 or record["epochs_done"] < 2:  # else it is no film
        draw["bands"] = lambda title: plots.theta_bands(film.epochs, film.bands, title)
        draw["film"] = lambda title: film
    _draw(draw, images, name, plots.title_of(model.config, data, record["epochs_done"]))
    return 0 if record["finished"] else STOPPED


def evaluate_checkpoint(checkpoint: Path, device: str, data_root: str | None) -> None:
    """Measure a trained model again on its test images."""
    trained = find_checkpoint(checkpoint)
    model = model_of(trained, device)
    # not what "auto" finds today: on other images it would be at chance, and nobody would know why
    name, classes = trained.get("dataset"), trained.get("classes")
    built_in = {name: dataset for dataset, name in NAMES.items()}
    if name not in built_in:
        raise ValueError(f"checkpoint: {checkpoint} was trained on {name!r}; must be one of "
                         f"{', '.join(built_in)}, or use load_model and evaluate in Python")
    config = model.config.replace(dataset=built_in[name])
    data = load_data(config if data_root is None else config.replace(data_root=data_root))
    if list(data.classes) != classes:
        raise ValueError(f"checkpoint: {checkpoint} tells apart {classes}; {data.name} has "
                         f"{list(data.classes)}")
    test = evaluate(model, data.test)
    say(f"{config!r}\ntest accuracy {test.accuracy:.1%}, loss {test.loss:.3f}, on "
        f"{len(data.test):,} images of {data.name}")


def _figures(model, data, confusion) -> dict:
    """What can be drawn of any trained model: name -> function of the title."""
    images = dict(strip=plots.strip, pairs=plots.pairs, regions=plots.sampled_regions,
                  means=plots.class_means, mistakes=plots.mistakes)
    config = model.config
    if config.pose_bins:
        images["upright"] = plots.turned_and_upright
    figures = {name: partial(draw, model, data) for name, draw in images.items()} | dict(
        theta=lambda title: plots.theta_histograms(
            diagnostics.statistics(model, data.test.images), title),
        confusion=lambda title: plots.confusion(confusion, data.classes, title))

    def robustness(title):
        upright = data if config.distortion is None else load_data(config.replace(distortion=None))
        measured = diagnostics.robustness(model, upright.test[:1000])
        return plots.robustness({"this model": measured}, title)

    if data.size == model.input_shape[-1]:  # not on a larger canvas
        figures["robustness"] = robustness
    return figures


def _draw(figures: dict, folder: Path, label: str, title: str) -> None:
    """Draw and save each of `figures`; what fails is named, and the others are drawn."""
    drawn = []
    for name, figure in figures.items():
        try:
            made = figure(title)
            if name == "film":
                made.gif(folder / f"{label}-film.gif")
            else:
                plots.save(made, folder / f"{label}-{name}.png")
            drawn.append(name)
        except Exception as error:
            print(f"figure {name}: not drawn ({error})", file=sys.stderr)
    say(f"figures: {folder / label}-{{{','.join(drawn)}}}")


def run_label(config: Config, dataset: str) -> str:
    """A short file name's stem for a run: preset, data set, what differs, seed."""
    skip = ("dataset", "data_root", "device", "seed")
    changed = [f"{key}={value}" for key, value in config.differences().items() if key not in skip]
    middle = "-".join(changed)
    if len(middle) > 40:
        middle = f"{len(changed)}-changes-{experiment.digest(middle)}"
    stem = [config.name, dataset.lower().replace("-", ""), middle, f"s{config.seed}"]
    return "-".join(filter(None, stem)).replace("/", "_")


def figures(images: Path, dataset: str) -> None:
    """Draw the figure that needs no training: the transformer families."""
    check_writable(images)
    image = load_data(Config(dataset=dataset)).test.images[HORSE]
    path = images / "transform_families.png"
    plots.save(plots.families(image), path)
    say(f"figure: {path}")


def notebook(out: Path) -> None:
    """Write a copy of the notebook that carries the package: one file for Colab, or for a class."""
    from .notebook import single_file
    single_file.write(out)
    say(f"{out}: {out.stat().st_size / 1e3:,.0f} kB; needs nothing beside it but Python with "
        "torch, matplotlib and tqdm")


def export_suite(distortion: str, out: Path, data_root: str | None) -> None:
    """Write a frozen suite of distorted CIFAR-10 test images, with labels and poses, as .npz."""
    distortions.row_of(distortion)  # before a long download
    check_new(out)
    test = load_data(Config(dataset="cifar10", data_root=data_root)).test
    content, digest = suite_file(test.images, test.labels, distortion)
    write_whole(out, content)
    say(f"{out}: {len(test):,} images, labels, theta (applied: distorted(p) = original(theta p)); "
        f"SHA-256 of all three, theta to five places, {digest}")


def _experiments(argv: list[str]) -> int:
    """Hand over to experiments/, which stands beside the library in a clone of the repository."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "experiments" / "__init__.py").is_file():
        raise FileNotFoundError("studies, report and benchmarks are not part of the installed "
                                "package; clone the repository, and run this command there")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module("experiments.__main__").main(argv)


def _parser() -> argparse.ArgumentParser:
    raw = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(prog="python -m stn_cifar", description=__doc__,
                                     epilog=EXAMPLES, **raw)
    parser.add_argument("--version", action="version", version=f"stn_cifar {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name, command, help, **more):
        sub = commands.add_parser(name, help=help, description=command.__doc__, **more)
        sub.set_defaults(command=command)
        return sub

    def folder(sub, flag, help, **more):
        sub.add_argument(flag, type=path_argument, help=help, **more)

    results = dict(default=Path("results"))
    images = dict(default=Path("images"))
    sub = add("train", train, "run one experiment", epilog=EXAMPLES, **raw)
    sub.add_argument("--preset", default="tutorial",
                     help=f"where to start from: {', '.join(PRESETS)} (default: tutorial)")
    folder(sub, "--results", "folder for the record (default: results)", **results)
    folder(sub, "--images", "folder for the figures (default: images)", **images)
    folder(sub, "--checkpoint-dir", "keep every epoch's end here, and go on from it (default: a "
           "new folder in checkpoints/)")
    _add_fields(sub)
    sub = add("evaluate", evaluate_checkpoint, "measure a trained model again")
    folder(sub, "--checkpoint", "a checkpoint file, or a run's folder", required=True)
    sub.add_argument("--device", default="auto", help="where (default: auto)")
    sub.add_argument("--data-root", help="folder holding CIFAR-10, other than the run's")
    sub = add("figures", figures, "draw the figure that needs no training")
    folder(sub, "--images", "folder for the figures (default: images)", **images)
    sub.add_argument("--dataset", default="auto", help="whose images to draw (default: auto)")
    sub = add("notebook", notebook, "write the notebook as one self-contained file")
    folder(sub, "out", "the file to write, such as stn_alone.ipynb")
    sub = add("export-suite", export_suite, "write distorted CIFAR-10 as a file for others")
    sub.add_argument("distortion", help=f"one of {', '.join(distortions.DISTORTIONS)}")
    folder(sub, "out", "the file to write, such as rotated-cifar10.npz")
    sub.add_argument("--data-root", help="folder holding CIFAR-10")
    return parser


def _add_fields(sub: argparse.ArgumentParser) -> None:
    """One option for each field of Config, by group; Config checks the values."""
    hints, groups = typing.get_type_hints(Config), {}
    for field in dataclasses.fields(Config):
        if field.name == "name":
            continue
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = sub.add_argument_group(f"{title} (overrides the preset)")
        optional = isinstance(hints[field.name], types.UnionType)
        kind = typing.get_args(hints[field.name])[0] if optional else hints[field.name]
        text = field.metadata["help"].replace("%", "%%")
        options = dict(default=argparse.SUPPRESS)
        if kind is bool:
            options |= dict(action=argparse.BooleanOptionalAction, help=text)
        else:
            choices = field.metadata["limits"]["choices"]
            names = [*(choices or []), *(["none"] if optional else [])]
            options |= dict(type=_none_or(kind) if optional else kind,
                            metavar="{" + ",".join(names) + "}" if choices else
                            field.name.upper(), help=f"{text} (tutorial: {field.default})")
        groups[title].add_argument("--" + field.name.replace("_", "-"), **options)


def _none_or(kind):
    """The type of an option that may be "none"."""
    def parse(text):
        return None if text.lower() == "none" else kind(text)
    parse.__name__ = kind.__name__  # argparse names it in its errors
    return parse


if __name__ == "__main__":
    sys.exit(main())
