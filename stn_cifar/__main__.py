"""python -m stn_cifar: the experiment without a notebook."""

import argparse
import dataclasses
import sys
import types
import typing
from pathlib import Path

from . import diagnostics, plots, single_file, studies, study
from .checkpoints import CheckpointError
from .config import PRESETS, Config
from .data import DataError, load_data
from .film import Film
from .report import NOTEBOOK, accuracy_against_angle, runs_by_arm, turns_left, write_report
from .training import NonFiniteLoss

EXAMPLES = """examples:
  python -m stn_cifar train                                  the whole experiment: CIFAR-10, 50 epochs
  python -m stn_cifar train --epochs 2                       a first look
  python -m stn_cifar train --transform rotation --seed 1    another transformer family, another seed
  python -m stn_cifar train --no-stn                         the control: the same classifier alone
  python -m stn_cifar train --dataset glyphs                 no network needed: drawn glyphs in random poses
  python -m stn_cifar figures                                draw the transformer families
  python -m stn_cifar study ladder                           many runs: what each ingredient of a preset brings
  python -m stn_cifar notebook stn_alone.ipynb               the notebook as one file that needs nothing else
  python -m stn_cifar bench                                  measure speed: about ten minutes on two cores
  python -m stn_cifar report                                 bring README's tables and links up to date
"""
BENCHMARKS = ("loops", "measures", "growth", "families", "antialias")
FAMILIES_PICTURE = 13  # a horse, which fills its picture: good to see what a warp does


def main(argv: list[str] | None = None) -> int:
    args = vars(_parser().parse_args(argv))
    command = args.pop("command")
    try:
        command(**args)
    except (ValueError, OSError, CheckpointError, DataError, NonFiniteLoss, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(preset: str, results: Path, images: Path, checkpoint_dir: Path | None, **overrides) -> None:
    """Train, measure, write the record and the figures, and say where they are."""
    config = Config.preset(preset, **overrides)
    for folder in (results, images):  # before hours of training, not after
        _check_writable(folder)
    films = []

    def watch(model, data):
        films.append(Film(model, data))
        return films[0]

    model, data, record = study.run(config, checkpoint_dir, watch)
    path = study.save(record, results)
    film, = films
    film(model, record["history"])  # of a run that was complete before, the one frame that can be had
    title = plots.title_of(config, data, record["epochs_done"])
    figures = {
        "strip": plots.strip(model, data, title),
        "pairs": plots.pairs(model, data, title),
        "where": plots.where(model, data, title),
        "curves": plots.curves(record["history"], title, record["test"]["accuracy"]),
        "theta": plots.theta_histograms(diagnostics.survey(model, data.test.images), title),
        "means": plots.class_means(model, data, title),
        "confusion": plots.confusion(record["test"]["confusion"], data.classes, title),
        "mistakes": plots.mistakes(model, data, title),
    }
    upright = (data if config.distortion is None else load_data(config.replace(distortion=None))).test[:1000]
    if upright.images.shape[-1] == config.image_size:  # not on a larger canvas
        figures["robustness"] = plots.robustness({"this model": diagnostics.robustness(model, upright)}, title)
    filmed = len(film.frames) > 2 or record["epochs_done"] < 2  # else nothing to put in the place of an earlier film
    if filmed:
        figures["bands"] = plots.theta_bands(film.epochs, film.bands, title)
        film.gif(images / f"{path.stem}-film.gif")
    for name, figure in figures.items():
        figure.savefig(images / f"{path.stem}-{name}.png")
    print(f"test accuracy {record['test']['accuracy']:.1%} on {len(data.test):,} images of {data.name}; "
          f"train {record['train']['accuracy']:.1%} (dropout off); {record['parameters']:,} parameters; "
          f"{record['training_seconds']:.0f} s on {record['machine']}")
    print(f"record: {path}; figures: {images / path.stem}-{{{','.join(figures)}}}.png"
          + (" and -film.gif" if filmed else "; no film, as all epochs were there already"))


def figures(images: Path, dataset: str) -> None:
    """Draw the figures that need no training."""
    _check_writable(images)
    data = load_data(Config(dataset=dataset))
    for name, figure in (("transform_families", plots.families), ("stn_diagram", plots.diagram)):
        figure(data.test.images[FAMILIES_PICTURE]).savefig(images / f"{name}.png")
        print(f"figure: {images / name}.png")


def notebook(out: Path) -> None:
    """Write a copy of the notebook that carries the package: one file for Colab, or to mail to a class."""
    single_file.write(out)
    print(f"{out}: {out.stat().st_size / 1e3:,.0f} kB; needs nothing beside it but Python with torch, torchvision, "
          "matplotlib and tqdm")


def bench(names: list[str], quick: bool, results: Path | None, images: Path | None, device: str) -> None:
    """Measure speed, side by side with the tutorial's loop; the tables go to README by `report`."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "benchmarks" / "run.py").is_file():
        raise FileNotFoundError("the benchmarks are not part of the installed package; they are in the repository: "
                                "clone it, and run this command there")
    sys.path.insert(0, str(root))
    from benchmarks import run  # beside the package, and nobody else needs it
    results = results or (Path("build") if quick else study.RESULTS)  # a quick run's numbers are not to be kept
    images = images or (Path("build") if quick else Path("images"))
    for folder in (results, images):
        _check_writable(folder)
    run.run(BENCHMARKS if "all" in names else names, results, images, quick, device)


def run_study(name: str, shard: str, results: Path, checkpoint_dir: Path | None, **overrides) -> None:
    """Run what is missing of a study: arms x seeds, one record each; the table goes to README by `report`."""
    _check_writable(results)
    given = {key: value for key, value in overrides.items() if value is not None}
    studies.run_study(name, results, shard, checkpoint_dir, **given)


def report(readme: Path, results: Path, notebook: Path, images: Path) -> None:
    """Bring README up to date: the tables from `results`, the studies' figures, and the Colab link from the notebook's
    REPO_URL."""
    write_report(readme, results, notebook)
    print(f"{readme}: tables and Colab link written")
    _check_writable(images)
    for name, this in studies.STUDIES.items():
        if not this.angles:
            continue
        config = this.config(next(iter(this.arms)), 0)
        arms = {f"{arm} (n = {len(runs)})": runs  # trained as long as the first one
                for arm, runs in runs_by_arm(name, study.load_results(results / f"study-{name}")).items()
                if runs and this.config(arm, 0).epochs == config.epochs}
        arms = dict(list(arms.items())[:len(plots.STYLES)])  # more could not be told apart
        title = " · ".join(["CIFAR-10" + (f", {config.distortion}" if config.distortion else ""), f"study {name}",
                            f"preset {this.preset}", f"epoch {config.epochs}"])
        against = {arm: known for arm, runs in arms.items() if (known := accuracy_against_angle(runs))}
        left = {}
        for arm, runs in arms.items():  # those that differ in the classifier alone leave the same, and are drawn once
            if (counts := turns_left(runs)) and counts not in left.values():
                left[arm] = counts
        for kind, figure, measured in (("angle", plots.robustness, against), ("left", plots.residual_angles, left)):
            if measured:
                path = images / f"study-{name}-{kind}.png"
                figure(measured, title).savefig(path)
                print(f"figure: {path}")


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"{folder}: cannot be written to ({error.strerror}); name another folder") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stn_cifar", description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")
    sub = commands.add_parser("train", help="run one experiment", description=train.__doc__, epilog=EXAMPLES,
                              formatter_class=argparse.RawDescriptionHelpFormatter)
    sub.set_defaults(command=train)
    presets = ", ".join(PRESETS)
    sub.add_argument("--preset", default="tutorial", help=f"where to start from: {presets} (default: tutorial)")
    sub.add_argument("--results", type=Path, default=study.RESULTS, help="folder for the record (default: results)")
    sub.add_argument("--images", type=Path, default=Path("images"), help="folder for the figures (default: images)")
    sub.add_argument("--checkpoint-dir", type=Path, help="keep every epoch's end here, and go on from it")
    fields = sub.add_argument_group("the experiment", "each overrides the preset; the default shown is Config's")
    hints = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        if field.name != "name":
            _add_field(fields, field, hints[field.name])
    sub = commands.add_parser("figures", help="draw the figures that need no training", description=figures.__doc__)
    sub.set_defaults(command=figures)
    sub.add_argument("--images", type=Path, default=Path("images"), help="folder for the figures (default: images)")
    sub.add_argument("--dataset", default="auto", help="whose pictures to draw (default: auto)")
    sub = commands.add_parser("notebook", help="write the notebook as one self-contained file",
                              description=notebook.__doc__)
    sub.set_defaults(command=notebook)
    sub.add_argument("out", type=Path, help="the file to write, such as stn_alone.ipynb")
    sub = commands.add_parser("bench", help="measure speed", description=bench.__doc__)
    sub.set_defaults(command=bench)
    sub.add_argument("names", nargs="*", choices=(*BENCHMARKS, "all"), default="all", metavar="benchmark",
                     help=f"which: {', '.join(BENCHMARKS)}, all (default: all)")
    sub.add_argument("--quick", action="store_true", help="try them all in a minute; the numbers mean nothing")
    sub.add_argument("--results", type=Path, help="folder for the record (default: results; quick: build)")
    sub.add_argument("--images", type=Path, help="folder for the figure (default: images; quick: build)")
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where (default: auto)")
    sub = commands.add_parser("study", help="run many experiments that answer one question",
                              description=run_study.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                              epilog="\n".join(f"{name}: {this.question}" for name, this in studies.STUDIES.items()))
    sub.set_defaults(command=run_study)
    sub.add_argument("name", help=f"which: {', '.join(studies.STUDIES)}")
    sub.add_argument("--shard", default="1/1", help="k/n: every n-th run, from the k-th on (default: 1/1, all)")
    sub.add_argument("--results", type=Path, default=study.RESULTS, help="folder for the records (default: results)")
    sub.add_argument("--checkpoint-dir", type=Path, help="keep each run's epochs here, and go on from them")
    sub.add_argument("--epochs", type=int, help="other than the study's")
    sub.add_argument("--device", help="where (default: auto)")
    sub = commands.add_parser("report", help="bring README up to date", description=report.__doc__)
    sub.set_defaults(command=report)
    sub.add_argument("--readme", type=Path, default=Path("README.md"), help="the file to write into")
    sub.add_argument("--results", type=Path, default=study.RESULTS, help="folder of records (default: results)")
    sub.add_argument("--notebook", type=Path, default=NOTEBOOK, help="the notebook whose REPO_URL is the address")
    sub.add_argument("--images", type=Path, default=Path("images"), help="folder for the figures (default: images)")
    return parser


def _add_field(group, field: dataclasses.Field, hint) -> None:
    """One option for one field of Config; Config itself checks the value, so its message is the only one."""
    kind = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
    flag, text = "--" + field.name.replace("_", "-"), field.metadata["help"].replace("%", "%%")
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    choices = field.metadata["choices"]
    metavar = "{" + ",".join(map(str, choices)) + "}" if choices else field.name.upper()
    group.add_argument(flag, type=kind, default=None, metavar=metavar, help=f"{text} (default: {field.default})")


if __name__ == "__main__":
    sys.exit(main())
