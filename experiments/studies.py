"""The studies, by name: those of poses, and those of the other presets, which are here."""

from .pose_studies import POSE_STUDIES
from .published import RECIPES
from .study import Study

STUDIES = POSE_STUDIES | {
    "padding": Study(
        "Which single setting keeps the tutorial's transformer from zooming out onto the border?",
        preset="tutorial", epochs=(50,), common=dict(precision="bf16"),
        protocol="Zeros are the mean colour, as images are normalized before they are sampled. "
                 "Above a sampling scale of 1 the transformer zooms out. At the classifier's rate "
                 "it also swings from epoch to epoch, and moves all images alike (bands): one seed "
                 "of the scale penalty was measured while it was off its place. A tenth of the "
                 "rate, as the STN paper had it on SVHN, calms it and lessens the zoom, without a "
                 "penalty; it also learns less far in as many epochs. No setting is shown to "
                 "change the accuracy. Films and bands are of seed 0; the images are test images.",
        arms={
            "zeros": {},
            "border": dict(padding_mode="border"),
            "reflection": dict(padding_mode="reflection"),
            "zeros, scale penalty": dict(scale_weight=10.0, max_scale=1.05),
            "zeros, outside penalty": dict(outside_weight=1.0),
            "zeros, localization rate 0.1": dict(localization_lr_scale=0.1),
            "zeros, learning rate falls to 0": dict(schedule="linear"),
        }),
    "presets": Study(
        "What do the presets reach?",
        preset="tutorial", epochs=(50,), compare_with=("compact, no transformer",),
        protocol="The presets as they are; strong, which is meant for a GPU, also at half its "
                 "width, with holes of 8 pixels, or of its own 12 (larger). Compact's transformer "
                 "moves every picture alike; held to the identity, by a penalty of 10 instead of "
                 "0.1, it would hardly move them (study ladder).",
        published=RECIPES,
        arms={
            "tutorial": {},
            "compact": dict(preset="compact"),
            "compact, no transformer": dict(preset="compact", stn=False),
            "compact, held to the identity": dict(preset="compact", identity_weight=10.0),
            "strong": dict(preset="strong", epochs=(40,)),
            "strong, half the width":
                dict(preset="strong", width=0.5, cutout=8, precision="bf16", epochs=(24, 30)),
            "strong, half the width, larger holes":
                dict(preset="strong", width=0.5, precision="bf16", epochs=(30,)),
            "glyphs": dict(preset="glyphs", dataset="glyphs", epochs=(30,)),
        }),
    "families": Study(
        "Does every transformer family train on CIFAR-10?",
        preset="tutorial", epochs=(10,),
        arms={name: dict(transform=name) for name in (
            "affine", "translation", "rotation", "attention", "similarity", "projective", "tps")}),
    "ladder": Study(
        "What does each ingredient of the preset compact bring in five epochs?",
        preset="compact", epochs=(5,), seeds=2, choice=True,
        common=dict(val_size=5000, precision="bf16"),
        protocol="Each arm changes what it says, the last one the whole recipe. Intervals of two "
                 "pairs are very wide.",
        arms={
            "compact": {},
            "no transformer": dict(stn=False),
            "identity penalty 10": dict(identity_weight=10.0),
            "localization rate 0.1, no identity penalty":
                dict(localization_lr_scale=0.1, identity_weight=0.0),
            "constant learning rate": dict(schedule="constant"),
            "learning rate 0.2": dict(learning_rate=0.2),
            "no shifts": dict(shift=0),
            "holes of 8 pixels": dict(cutout=8),
            "label smoothing": dict(label_smoothing=0.1),
            "the tutorial's networks": dict(model="tutorial"),
            "the tutorial's recipe": dict(
                learning_rate=0.01, localization_lr_scale=1.0, identity_weight=0.0, momentum=0.0,
                weight_decay=0.0, schedule="constant", warmup=0.0, batch_size=64, flip=False,
                shift=0),
        }),
    "precision": Study(
        "Does bf16 cost accuracy?",
        preset="tutorial", epochs=(2,), seeds=10,
        protocol="The tutorial's experiment cut to two epochs, in both.",
        arms={"fp32": dict(precision="fp32"), "bf16": dict(precision="bf16")}),
}


def by_name(name: str) -> Study:
    """The study `name`; ValueError for an unknown one."""
    if name not in STUDIES:
        raise ValueError(f"study: {name!r} is unknown; must be one of {', '.join(STUDIES)}")
    return STUDIES[name]
