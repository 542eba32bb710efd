"""Studies: a question, its arms as data, and seeds; each run one record, skipped where it is there already.

So a study that was broken off goes on, and `shard` spreads one over machines: shard 2 of 8 takes every eighth run.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from . import study
from .config import Config


@dataclass(frozen=True)
class Study:
    """Arms that differ in named fields and in nothing else; the first arm is what the others are compared with."""

    question: str
    preset: str
    arms: dict[str, dict]  # name -> overrides of the preset
    common: dict = field(default_factory=dict)  # overrides of all arms
    seeds: int = 3
    choice: bool = False  # a choice is being made: compare on validation images, not on test images

    def config(self, arm: str, seed: int, **overrides) -> Config:
        """The experiment of one run."""
        fields = {"dataset": "cifar10", **self.common, **self.arms[arm], **overrides}
        return Config.preset(self.preset, **fields, seed=seed)


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
}


def run_study(name: str, folder: Path = study.RESULTS, shard: str = "1/1", **overrides) -> None:
    """Run what is missing of the study `name`, records into `folder`/study-`name`; shard "2/8": every eighth run.

    overrides: Config fields set in every arm, as to try a study with epochs=1; its table leaves such runs out.
    """
    if name not in STUDIES:
        raise ValueError(f"study: {name!r} is unknown; must be one of {', '.join(STUDIES)}")
    this, place = STUDIES[name], Path(folder) / f"study-{name}"
    for arm, seed in runs_of(this, shard):
        config = this.config(arm, seed, **overrides)
        path = place / f"{study.label(config, config.dataset)}.json"
        if path.exists():
            print(f"there already: {path}")
            continue
        print(f"{name}: {arm}, seed {seed}", flush=True)
        _, _, record = study.run(config)
        study.save(record, place)
        if not record["finished"]:  # somebody stopped it, and means the study
            return


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
