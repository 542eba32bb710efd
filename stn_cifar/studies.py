"""Studies: a question, its arms as data, and seeds; each run one record, skipped where it is there already.

So a study that was broken off goes on, and `shard` spreads one over machines: shard 2 of 8 takes every eighth run.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from . import diagnostics, distortions, study
from .config import Config
from .data import Split, load_data
from .training import evaluate


@dataclass(frozen=True)
class Study:
    """Arms that differ in named fields and in nothing else; the first arm is what the others are compared with."""

    question: str
    preset: str
    arms: dict[str, dict]  # name -> overrides of the preset
    common: dict = field(default_factory=dict)  # overrides of all arms
    seeds: int = 3
    choice: bool = False  # a choice is being made: compare on validation images, not on test images
    suites: tuple[str, ...] = ()  # distortions by whose frozen suites every trained model is tested besides
    angles: tuple[int, ...] = ()  # degrees; every trained model is tested on pictures that are all turned by each

    def config(self, arm: str, seed: int, **overrides) -> Config:
        """The experiment of one run."""
        fields = {"dataset": "cifar10", **self.common, **self.arms[arm], **overrides}
        return Config.preset(self.preset).replace(**fields, seed=seed)  # where None is a value, not the preset's


ANGLE_IMAGES = 1000  # test images, turned by each of a study's angles
TURNS = tuple(range(-180, 181, 30))
# what arms change in the preset taught: one pose learnt by regression; class loss alone, at the pace and with the pull
# that study pace found best; no transformer
TAUGHT_ONE_POSE = dict(pose_cells=0, pose_curriculum=0.0, quarter_turns="none", localization_width=1.0)
CLASSIC = dict(TAUGHT_ONE_POSE, pose_weight=0.0, localization_lr_scale=0.0001, identity_weight=0.1)
AFFINE = dict(CLASSIC, transform="affine")
ALONE = dict(TAUGHT_ONE_POSE, pose_weight=0.0, stn=False)

# The classic transformer is a control only if it is given its best pace: how fast its localization network may learn.
PACES = {"CNN alone": ALONE} | {
    f"localization learns {pace} times as fast{', pulled to the identity' if pull else ''}":
        dict(AFFINE, localization_lr_scale=float(pace), identity_weight=pull)
    for pace in ("0.01", "0.001", "0.0001", "0.00001") for pull in (0.0, 0.1)}

STUDIES = {
    "ladder": Study(
        "What does each ingredient of the preset compact bring in five epochs, on 5,000 training images held out? "
        "Each row changes what it says, the last one the whole recipe. Intervals of two pairs are very wide.",
        preset="compact", seeds=2, choice=True, common=dict(val_size=5000, epochs=5),
        arms={
            "compact": {},
            "without the transformer": dict(stn=False),
            "localization learns 10 times as fast": dict(localization_lr_scale=0.1),
            "no pull to the identity": dict(identity_weight=0.0),
            "no decay of the learning rate": dict(schedule="constant"),
            "the localization network left alone": dict(localization_lr_scale=0.1, identity_weight=0.0),
            "the tutorial's networks": dict(model="tutorial"),
            "the tutorial's recipe": dict(learning_rate=0.01, localization_lr_scale=1.0, identity_weight=0.0,
                                          momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0,
                                          batch_size=64, flip=False, shift=0),
        }),
    "precision": Study(
        "Does bf16 cost accuracy? The tutorial's experiment cut to two epochs, in both.",
        preset="tutorial", seeds=10, common=dict(epochs=2),
        arms={"fp32": dict(precision="fp32"), "bf16": dict(precision="bf16")}),
    **{name: Study(
        f"How fast should the classic transformer's localization network learn, on CIFAR-10 {pictures}? Two epochs, "
        "5,000 training images held out.",
        preset="taught", seeds=1, choice=True, arms=PACES,
        common=dict(distortion=distortion, epochs=2, val_size=5000, precision="fp32"))
       for name, distortion, pictures in (("pace", "rotation", "turned by any angle"),
                                          ("pace-upright", None, "as it is"))},
    "rotation": Study(
        "Does a transformer that is taught pose pay, on CIFAR-10 turned by any angle? The first control has as much "
        "arithmetic as the small transformer and as many parameters as the large one; trained longer, it has cost as "
        "much arithmetic as the large one. The CNN of quarter turns has the weights shared over turns by 90 degrees "
        "that the transformers' localization network has, and the large one's arithmetic.",
        preset="taught", common=dict(precision="fp32"), angles=TURNS, suites=("rotation45", "rotation90"),
        arms={
            "CNN": dict(ALONE, width=1.41),
            "CNN, twice as many parameters": dict(ALONE, width=2.0),
            "taught transformer, large": {},
            "taught transformer, small": dict(localization_width=1.0),
            "CNN of quarter turns": dict(ALONE, quarter_turns="classifier", width=2.2),
            "taught, quarter turns in both": dict(quarter_turns="both", width=1.7, localization_width=1.41),
            "CNN, trained longer": dict(ALONE, width=1.41, epochs=20),
            "taught, small, trained longer": dict(localization_width=1.0, epochs=20),
            "taught, large, trained longer": dict(epochs=20),
            "CNN, trained longest": dict(ALONE, width=1.41, epochs=32),
            "taught, large, trained longest": dict(epochs=32),
            "CNN of quarter turns, trained longest": dict(ALONE, quarter_turns="classifier", width=2.2, epochs=32),
            "taught modulo 90 degrees, trained longest": dict(quarter_turns="both", width=2.0, localization_width=0.9,
                                                              pose_cells=12, pose_span="quarter", epochs=32),
            "taught, quarter turns in both, trained longest": dict(quarter_turns="both", width=1.7,
                                                                   localization_width=1.41, epochs=32),
        }),
    "arms": Study(
        "What makes the difference, on CIFAR-10 turned by any angle? All networks from the preset taught, four epochs.",
        preset="taught", seeds=2, common=dict(epochs=4, precision="fp32"), angles=TURNS,
        arms={
            "CNN, as many parameters": dict(ALONE, width=1.41),
            "taught transformer": {},
            "the CNN in it, alone": ALONE,
            "CNN told the pose, nothing warped": dict(ALONE, width=1.41, pose_weight=1.0, pose_cells=36,
                                                      pose_head=True),
            "classic transformer, affine": AFFINE,
            "taught, without the curriculum": dict(pose_curriculum=0.0),
            "taught, without quarter turns": dict(quarter_turns="none", localization_width=1.0),
            "taught, without both": dict(quarter_turns="none", localization_width=1.0, pose_curriculum=0.0),
            "taught by regression": TAUGHT_ONE_POSE,
            "taught by regression, a hundredth as fast": dict(TAUGHT_ONE_POSE, localization_lr_scale=0.01),
            "CNN of quarter turns": dict(ALONE, quarter_turns="classifier", width=2.0),
            "classic transformer, rotation": CLASSIC,
            "affine, not pulled to the identity": dict(AFFINE, identity_weight=0.0),
            "affine, outside_weight": dict(AFFINE, identity_weight=0.0, outside_weight=1.0),
            "affine, scale_weight": dict(AFFINE, identity_weight=0.0, scale_weight=10.0, max_scale=1.05),
            "affine, two iterations": dict(AFFINE, iterations=2),
            "affine, a thousand times as fast": dict(AFFINE, localization_lr_scale=0.1, identity_weight=0.0),
            "taught, first layers shared": dict(quarter_turns="none", localization_width=1.0, shared_layers=2),
        }),
    "upright": Study(
        "Does the classic transformer pay on CIFAR-10 as it is? And what do pictures that are turned do to both?",
        preset="taught", common=dict(distortion=None, epochs=4, precision="fp32"),
        suites=("rotation45", "rotation90", "rotation", "rts"), angles=TURNS,
        arms={
            "CNN, as many parameters": dict(ALONE, width=1.41),
            "the CNN in it, alone": ALONE,
            "classic transformer, affine": AFFINE,
            "affine, a tenth as fast, not pulled": dict(AFFINE, localization_lr_scale=0.00001, identity_weight=0.0),
        }),
    "rts": Study(
        "Turned by up to 45 degrees, moved, and 0.7 to 1.2 times as large: does a transformer that is taught all that "
        "pay?",
        preset="taught", common=dict(distortion="rts", epochs=4, precision="fp32"),
        arms={
            "CNN, as many parameters": dict(ALONE, width=1.79),
            "taught transformer, similarity": dict(transform="similarity", quarter_turns="none",
                                                   localization_width=1.0),
            "classic transformer, affine": AFFINE,
        }),
    "clutter": Study(
        "Moved about on a larger canvas, among patches of other pictures: does a transformer pay that is taught where "
        "to look? The control has fewer parameters and needs more arithmetic.",
        preset="taught", seeds=2, common=dict(distortion="clutter", image_size=48, epochs=4, precision="fp32"),
        arms={
            "CNN on the whole canvas": ALONE,
            "taught transformer, similarity": dict(transform="similarity", quarter_turns="none", localization_width=0.5,
                                                   output_size=32),
            "classic transformer, similarity": dict(CLASSIC, transform="similarity", localization_width=0.5,
                                                    output_size=32),
        }),
}


def run_study(name: str, folder: Path = study.RESULTS, shard: str = "1/1", checkpoint_dir: Path | None = None,
              **overrides) -> None:
    """Run what is missing of the study `name`, records into `folder`/study-`name`; shard "2/8": every eighth run.

    checkpoint_dir: keep each run's checkpoints in a folder of its own there, and go on from them.
    overrides: Config fields set in every arm, as to try a study with epochs=1; its table leaves such runs out.
    """
    if name not in STUDIES:
        raise ValueError(f"study: {name!r} is unknown; must be one of {', '.join(STUDIES)}")
    this, place = STUDIES[name], Path(folder) / f"study-{name}"
    for arm, seed in runs_of(this, shard):
        config = this.config(arm, seed, **overrides)
        label = study.label(config, config.dataset)
        path = place / f"{label}.json"
        if path.exists():
            print(f"there already: {path}")
            continue
        print(f"{name}: {arm}, seed {seed}", flush=True)
        model, _, record = study.run(config, checkpoint_dir and Path(checkpoint_dir) / label)
        study.save(record | more_tests(this, model, config), place)
        if not record["finished"]:  # somebody stopped it, and means the study
            return


def more_tests(this: Study, model, config: Config) -> dict:
    """What the study measures of a trained model besides: accuracies on suites, and against the angle of turning."""
    measured = {}
    if this.suites or this.angles:
        test = load_data(config.replace(distortion=None)).test
    if this.suites:
        measured["suites"] = {}
        for name in this.suites:
            images, theta = distortions.suite(test.images, name)
            measured["suites"][name] = evaluate(model, Split(images, test.labels, theta)).accuracy
    if this.angles:
        accuracies = diagnostics.accuracy_against(model, test[:ANGLE_IMAGES], "angle", this.angles)
        measured["against"] = dict(angle=dict(values=list(this.angles), accuracy=accuracies))
    return measured


def runs_of(this: Study, shard: str = "1/1") -> list[tuple[str, int]]:
    """The (arm, seed) of `shard`, "k/n": all seeds 0 first, so that a study cut short has every arm."""
    try:
        k, n = map(int, shard.split("/"))
    except ValueError:
        k, n = 0, 0
    if not 1 <= k <= n:
        raise ValueError(f"shard: {shard!r}; must be k/n with 1 <= k <= n, such as 2/8")
    runs = [(arm, seed) for seed, arm in itertools.product(range(this.seeds), this.arms)]
    return runs[k - 1::n]
