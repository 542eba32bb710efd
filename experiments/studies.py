"""The studies: each a question, its arms, budgets, seeds and protocol."""

from dataclasses import replace

from stn_cifar.distortions import DISTORTIONS

from .published import RECIPES
from .study import Study

# Every 15 degrees: the eight multiples of 45 are among them, over which others average.
TURNS = tuple(range(-180, 181, 15))
# The same turns by other filters than training has (bicubic): what moves then is no pose.
FILTERED = {f"rotation, {name}": replace(DISTORTIONS["rotation"], **fields) for name, fields in {
    "nearest": dict(interpolation="nearest"), "bilinear": dict(interpolation="bilinear"),
    "4 x 4 samples": dict(supersample=4)}.items()}
# What a study of all angles tests besides; disc: upright pictures, shown as the turned ones are
TURNED_SUITES = ("rotation45", "rotation90", "disc", *FILTERED)
# What arms change in the preset taught. One pose by regression instead of a distribution:
REGRESSION = dict(localization=None, localization_width=1.0, pose_bins=0, teacher_forcing=0.0)
# No transformer:
CNN = dict(stn=False)
# The class loss alone, at the rate and with the identity penalty that study pace found best:
CLASS_LOSS = dict(REGRESSION, pose_weight=0.0, localization_lr_scale=0.0001, identity_weight=0.1)
AFFINE = dict(CLASS_LOSS, transform="affine")
# A p4 classifier; before it a transformer that finds the angle modulo 90 degrees:
P4_CNN = dict(CNN, model="p4")
MODULO_90 = dict(model="p4", localization="p4_mod90", pose_bins=12)
# Both with depthwise-separable blocks, of equal arithmetic:
SEPARABLE_CNN = dict(CNN, model="separable_p4", width=2.45)
SEPARABLE_90 = dict(MODULO_90, model="separable_p4", width=2.0, localization_width=0.9)

PACES = {"classifier alone": CNN} | {
    f"localization rate {rate}{', identity penalty' if weight else ''}":
        dict(AFFINE, localization_lr_scale=float(rate), identity_weight=weight)
    for rate in ("0.01", "0.001", "0.0001", "0.00001") for weight in (0.0, 0.1)}

# Of study padding: file in images/, what it shows, and the flags of the run that draws it
RATE_FLAG = " --localization-lr-scale 0.1"
FILMS = (
    ("tutorial-cifar10-film.gif", "Film of zeros: every image shrinks onto a grey border", ""),
    ("padding-border-film.gif", "Film of border: the images shrink as far, amid streaks",
     " --padding-mode border"),
    ("padding-reflection-film.gif", "Film of reflection: they shrink amid mirror images",
     " --padding-mode reflection"),
    ("padding-scale-penalty-film.gif",
     "Film of zeros with the scale penalty: the images keep their size, but tilt and slide",
     " --scale-weight 10 --max-scale 1.05"),
    ("padding-localization-rate-film.gif",
     "Film of zeros with the localization rate 0.1: the images hardly move", RATE_FLAG),
    ("tutorial-cifar10-bands.png",
     "What zeros' transformer does to test images, epoch by epoch: it swings to and fro, and moves "
     "all images alike", ""),
    ("padding-localization-rate-bands.png",
     "The same with the localization rate 0.1: far less swing, and less zoom",
     RATE_FLAG))

STUDIES = {
    "rotation": Study(
        "Does a pose-supervised spatial transformer pay on CIFAR-10 turned by any angle?",
        preset="taught", epochs=(8, 32), common=dict(precision="fp32"), angles=TURNS,
        suites=TURNED_SUITES, by_class=True,
        compare_with=("CNN, equal parameters", "p4 CNN"),
        protocol="Training images are turned anew in every epoch and shown in a disc; the test is "
                 "one frozen suite of all 10,000 images. The first arm has the parameters of the "
                 "pose-supervised STN and the arithmetic of the small one; the p4 CNN has the "
                 "pose-supervised STN's arithmetic, and the weights shared over quarter turns that "
                 "its localization network has. A classifier behind a transformer with teacher "
                 "forcing is shown truly upright images at first, which no CNN is.",
        arms={
            "CNN, equal parameters": dict(CNN, width=1.41),
            "CNN, twice the parameters": dict(CNN, width=2.0, epochs=(8,)),
            "p4 CNN": dict(P4_CNN, width=2.2),
            "pose-supervised STN": {},
            "pose-supervised STN, small": dict(localization_width=1.0, epochs=(8,)),
            "pose-supervised STN before a p4 CNN":
                dict(model="p4", width=1.7, localization_width=1.41),
            "pose-supervised STN before a p4 CNN, modulo 90°":
                dict(MODULO_90, width=2.0, localization_width=0.9, epochs=(32,)),
        }),
    "rotation-shifts": Study(
        "Does a transformer pay before a p4 CNN, where training images are shifted besides?",
        preset="taught", epochs=(32,), common=dict(precision="bf16", shift=4), angles=TURNS,
        suites=TURNED_SUITES, by_class=True,
        compare_with=("p4 CNN", "CNN, equal parameters", "separable p4 CNN"),
        protocol="As in study rotation every training image is turned anew in every epoch, the "
                 "test is one frozen suite, and both are shown in a disc; but training images are "
                 "shifted by up to 4 pixels before they are turned, as is usual on CIFAR-10: a "
                 "classifier that is shown upright pictures only learns them by heart otherwise. "
                 "CNN, equal parameters: as many as the pose-supervised STN has. Networks are "
                 "called separable where their convolutions are (depthwise, then 1x1). All runs "
                 "are in bf16, which repeats bit for bit on a processor and on a GPU; fp32 does "
                 "not on a GPU. Shifts were preferred to shifts and holes of 8 pixels on "
                 "validation images (24 epochs, one seed, not kept). An upright arm is a "
                 "classifier alone, trained and tested on upright images in the same disc: a "
                 "ceiling for arms with that classifier (behind a transformer modulo 90° it is of "
                 "width 2.0); with what others have it is not compared.",
        pictures={
            "taught-upright.png":
                "Ten test photographs, the first of each class, each turned by a random angle; "
                "below them, as the pose-supervised STN of seed 0 hands them on, each with its "
                "classifier's prediction (drawn by `train --preset taught --dataset cifar10 "
                "--epochs 32 --shift 4 --precision bf16`)",
            "mod90-straight.png":
                "The same photographs; below them, as the transformer modulo 90° before a "
                "separable p4 CNN hands them on: straight, on any of four sides (the same command, "
                "with `--model separable_p4 --width 2 --localization p4_mod90 "
                "--localization-width 0.9 --pose-bins 12`)"},
        arms={
            "p4 CNN": dict(P4_CNN, width=2.2),
            "CNN, equal parameters": dict(CNN, width=1.41),
            "pose-supervised STN": {},
            "pose-supervised STN before a p4 CNN":
                dict(model="p4", width=1.7, localization_width=1.41),
            "pose-supervised STN before a p4 CNN, modulo 90°":
                dict(MODULO_90, width=2.0, localization_width=0.9),
            "separable p4 CNN": SEPARABLE_CNN,
            "pose-supervised STN before a separable p4 CNN, modulo 90°": SEPARABLE_90,
            **{f"{arm}, upright": dict(fields, distortion="disc") for arm, fields in {
                "CNN, equal parameters": dict(CNN, width=1.41),
                "classifier of the pose-supervised STN": CNN,
                "p4 CNN": dict(P4_CNN, width=2.2),
                "p4 CNN of width 2.0": dict(P4_CNN, width=2.0),
                "separable p4 CNN of width 2.0": dict(SEPARABLE_CNN, width=2.0),
            }.items()},
        }),
    "modulo-90": Study(
        "Before a p4 CNN, what makes a transformer modulo 90° more accurate?",
        preset="taught", epochs=(8,), seeds=1, choice=True,
        common=dict(precision="bf16", shift=4, val_size=5000),
        compare_with=("separable",),
        protocol="As study rotation-shifts, cut to 8 epochs, on 5,000 validation images. The first "
                 "arm is its separable one modulo 90°; the others change what they say.",
        arms={
            "separable": SEPARABLE_90,
            "separable, no transformer": SEPARABLE_CNN,
            "separable, full circle": dict(SEPARABLE_90, localization="p4", pose_bins=36),
            "full convolutions": dict(SEPARABLE_90, model="p4"),
            "full convolutions, no transformer": dict(P4_CNN, width=2.2),
            "24 bins": dict(SEPARABLE_90, pose_bins=24),
            "small localization network, wider classifier":
                dict(SEPARABLE_90, localization_width=0.6, width=2.2),
            "no teacher forcing": dict(SEPARABLE_90, teacher_forcing=0.0),
        }),
    "rotation-strong": Study(
        "What do networks for a GPU reach on CIFAR-10 turned by any angle?",
        preset="taught", epochs=(50,), seeds=1, angles=TURNS,
        common=dict(precision="bf16", model="strong_p4", batch_size=256, learning_rate=0.2,
                    label_smoothing=0.1, shift=4, cutout=12),
        suites=TURNED_SUITES, by_class=True,
        protocol="With the classifier of strong as a p4 network. The arm whose squares were cut "
                 "out before turning is a warning: a square that turns along gives the pose away, "
                 "the transformer learns to read its sides alone, and is at chance on pictures "
                 "without one; with the true pose undone the same classifier is far ahead. Since "
                 "then holes are cut last, so that run cannot be repeated; the arms defined now "
                 "have not been run.",
        arms={
            "p4 CNN": CNN,
            "pose-supervised STN before a p4 CNN, modulo 90°":
                dict(localization="p4_mod90", pose_bins=12, localization_width=4.0),
        }),
    "arms": Study(
        "Which part of the pose-supervised spatial transformer makes the difference?",
        preset="taught", epochs=(4,), common=dict(precision="fp32"), angles=TURNS,
        protocol="As study rotation. The arms that begin with 'no' leave one part out; those by "
                 "the class loss, affine all but one, have no pose supervision. Applied "
                 "twice (two iterations) at the localization rate of one, the transformer "
                 "diverged: half of its samples lie outside the picture. At a tenth of that rate "
                 "two do as well as one.",
        arms={
            "CNN, equal parameters": dict(CNN, width=1.41),
            "pose-supervised STN": {},
            "STN by the class loss, affine": AFFINE,
            "its classifier alone": CNN,
            "p4 CNN": dict(P4_CNN, width=2.0),
            "no teacher forcing": dict(teacher_forcing=0.0),
            "no p4 convolutions": dict(localization=None, localization_width=1.0),
            "neither teacher forcing nor p4 convolutions":
                dict(localization=None, localization_width=1.0, teacher_forcing=0.0),
            "pose by regression": REGRESSION,
            "pose by regression, rate 0.01": dict(REGRESSION, localization_lr_scale=0.01),
            "STN by the class loss, rotation": CLASS_LOSS,
            "affine, no identity penalty": dict(AFFINE, identity_weight=0.0),
            "affine, outside penalty instead":
                dict(AFFINE, identity_weight=0.0, outside_weight=1.0),
            "affine, scale penalty instead":
                dict(AFFINE, identity_weight=0.0, scale_weight=10.0, max_scale=1.05),
            "affine, two iterations": dict(AFFINE, iterations=2),
            "affine, two iterations, rate 0.00001":
                dict(AFFINE, iterations=2, localization_lr_scale=0.00001),
            "affine, rate 0.1, no identity penalty":
                dict(AFFINE, localization_lr_scale=0.1, identity_weight=0.0),
        }),
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
        pictures={file: f"{told} (drawn by `train --preset tutorial --dataset cifar10 "
                             f"--precision bf16{flags}`)"
                  for file, told, flags in FILMS},
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
    "upright": Study(
        "Does a transformer trained by the class loss alone pay on CIFAR-10 as it is?",
        preset="taught", epochs=(4,), common=dict(distortion=None, precision="fp32"), angles=TURNS,
        suites=("rotation45", "rotation90", "rotation", "rts"),
        protocol="Nothing is turned in training, so no network has seen what the suites show. They "
                 "are cut to a disc, which by itself costs networks that know whole images points.",
        arms={
            "CNN, equal parameters": dict(CNN, width=1.41),
            "its classifier alone": CNN,
            "STN by the class loss, affine": AFFINE,
            "affine, rate 0.00001, no identity penalty":
                dict(AFFINE, localization_lr_scale=0.00001, identity_weight=0.0),
        }),
    "rts": Study(
        "Does pose supervision pay where images are turned by up to 45°, shifted and scaled?",
        preset="taught", epochs=(4,), common=dict(distortion="rts", precision="fp32"),
        arms={
            "CNN, equal parameters": dict(CNN, width=1.79),
            "pose-supervised STN, similarity":
                dict(transform="similarity", localization=None, localization_width=1.0),
            "STN by the class loss, affine": AFFINE,
        }),
    "clutter": Study(
        "Does pose supervision pay where images are shifted among patches of other images?",
        preset="taught", epochs=(4,), common=dict(distortion="clutter", precision="fp32"),
        protocol="The CNN on the whole canvas, 48 pixels wide, has fewer parameters and more "
                 "arithmetic than the pose-supervised STN, whose classifier is shown 32 pixels.",
        arms={
            "CNN on the whole canvas": CNN,
            "pose-supervised STN, similarity": dict(transform="similarity", localization=None,
                                                    localization_width=0.5, output_size=32),
            "STN by the class loss, similarity": dict(CLASS_LOSS, transform="similarity",
                                                      localization_width=0.5, output_size=32),
        }),
    **{name: Study(
        f"How fast should the localization network learn by the class loss, on {pictures}?",
        preset="taught", seeds=1, choice=True, arms=PACES, epochs=(2,),
        common=dict(distortion=distortion, val_size=5000, precision="fp32"),
        protocol="The rate is a multiple of the classifier's (localization_lr_scale).")
       for name, distortion, pictures in (("pace", "rotation", "CIFAR-10 turned by any angle"),
                                          ("pace-upright", None, "CIFAR-10 as it is"))},
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
