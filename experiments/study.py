"""What a study is: arms that differ in named fields, budgets and seeds; and the runs it takes."""

import itertools
from dataclasses import dataclass, field

from stn_cifar import Config


@dataclass(frozen=True)
class Study:
    """Arms that differ in named fields and in nothing else."""

    question: str
    preset: str
    # name -> overrides of the preset; beside Config's fields "preset", and "epochs" as budgets
    arms: dict[str, dict]
    common: dict = field(default_factory=dict)  # overrides of all arms
    epochs: tuple[int, ...] = (8,)  # budgets: every arm is trained for each of them
    seeds: int = 3
    choice: bool = False  # a choice is being made: compare on validation images, not on test images
    # arms that the others are compared with; None: the first one, (): the arms are only listed
    compare_with: tuple[str, ...] | None = None
    by_class: bool = False  # a table of accuracies by class besides
    # distortions, or keys of suites.FILTERED, by whose frozen suites every model is tested besides
    suites: tuple[str, ...] = ()
    angles: tuple[int, ...] = ()  # degrees by which all test pictures are turned alike, besides
    protocol: str = ""  # what a reader must know besides preset, budgets and seeds
    # what others report, as they do: one row of published.COLUMNS each
    published: tuple[tuple[str, ...], ...] = ()

    @property
    def controls(self) -> tuple[str, ...]:
        """The arms that the others are compared with."""
        return tuple(self.arms)[:1] if self.compare_with is None else self.compare_with

    def config(self, arm: str, epochs: int, seed: int, **overrides) -> Config:
        """The experiment of one run."""
        fields = {"dataset": "cifar10", **self.common, **self.arms[arm], **overrides}
        fields |= dict(epochs=epochs, seed=seed)
        return Config.preset(fields.pop("preset", self.preset), **fields)

    def runs(self, shard: str = "1/1", epochs: int | None = None) -> list[tuple[str, int, int]]:
        """(arm, epochs, seed) of the runs in `shard`, "k/n"; an arm's seeds follow one another.

        epochs: this budget in place of the study's. ValueError for a shard that is none.
        """
        try:
            k, n = map(int, shard.split("/"))
        except ValueError:
            k, n = 0, 0
        if not 1 <= k <= n:
            raise ValueError(f"shard: {shard!r}; must be k/n with 1 <= k <= n, such as 2/8")
        budgets = {arm: [epochs] if epochs else fields.get("epochs", self.epochs)
                   for arm, fields in self.arms.items()}
        runs = [(arm, budget, seed) for budget in sorted({*itertools.chain(*budgets.values())})
                for arm in self.arms if budget in budgets[arm] for seed in range(self.seeds)]
        return runs[k - 1::n]
