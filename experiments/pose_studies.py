"""Studies of transformers that are to undo a pose: all start from the preset taught."""

from .study import Study
from .suites import TURNED_SUITES, TURNS

# What arms change in the preset taught. One pose by regression instead of a distribution:
REGRESSION = dict(localization=None, localization_width=1.0, pose_bins=0, teacher_forcing=0.0)
# No transformer:
CNN = dict(stn=False)
# The class loss alone, at the rate and with the identity penalty that study pace found best:
CLASS_LOSS = dict(REGRESSION, pose_weight=0.0, localization_lr_scale=0.0001, identity_weight=0.1)
AFFINE = dict(CLASS_LOSS, transform="affine")
# A transformer that finds the angle modulo 90 degrees, and the p4 classifier that goes with it:
ANGLE_90 = dict(localization="p4_mod90", pose_bins=12)
P4_CNN = dict(CNN, model="p4")
MODULO_90 = dict(ANGLE_90, model="p4")
# With the classifier of strong, half its width: holes and large batches make the pose coarse; fp32,
# for a processor without bf16
NO_HOLES = dict(width=0.5, batch_size=128, learning_rate=0.1, label_smoothing=0.0, cutout=0,
                precision="fp32", epochs=(20,))
# Both with depthwise-separable blocks, of equal arithmetic:
SEPARABLE_CNN = dict(CNN, model="separable_p4", width=2.45)
SEPARABLE_90 = dict(MODULO_90, model="separable_p4", width=2.0, localization_width=0.9)

PACES = {"classifier alone": CNN} | {
    f"localization rate {rate}{', identity penalty' if weight else ''}":
        dict(AFFINE, localization_lr_scale=float(rate), identity_weight=weight)
    for rate in ("0.01", "0.001", "0.0001", "0.00001") for weight in (0.0, 0.1)}

POSE_STUDIES = {
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
        protocol="As in study rotation every training image is mirrored in every second epoch and "
                 "turned anew in each, the test is one frozen suite, and both are shown in a disc; "
                 "but training images are shifted by up to 4 pixels before they are turned, as is "
                 "usual on CIFAR-10: a classifier that is shown upright pictures only learns them "
                 "by heart otherwise. CNN, equal parameters: as many as the pose-supervised STN "
                 "has. Networks are called separable where their convolutions are (depthwise, then "
                 "1x1). Runs are in bf16, in which a processor and a GPU each repeat themselves "
                 "bit for bit; in fp32 a GPU does not. Only the full p4 CNNs upright are in fp32, "
                 "for a processor without bf16 (study precision shows no difference). Shifts were "
                 "preferred to shifts and holes of 8 pixels on validation images (24 epochs, one "
                 "seed, not kept). An upright arm is a classifier alone, trained and tested on "
                 "upright images in the same disc: a ceiling for arms with that classifier (behind "
                 "a transformer modulo 90° it is of width 2.0); the other arms' classifiers have "
                 "not been trained so.",
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
                "p4 CNN": dict(P4_CNN, width=2.2, precision="fp32"),
                "p4 CNN of width 2.0": dict(P4_CNN, width=2.0, precision="fp32"),
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
                 "then holes are cut last, so that run cannot be repeated; the arms of full width "
                 "defined now have not been run. At half the width a processor core will do. Shown "
                 "holes in batches of 256 the transformer there is far coarser than in study "
                 "rotation-shifts (modulo 90°), and with the true pose undone its classifier is "
                 "ahead of the p4 CNN. In batches of 128 and without holes (chosen on validation "
                 "images, 8 epochs, one seed, not kept; either alone did not do it) it is nearly "
                 "as fine as there; by that recipe, which has no label smoothing and a third fewer "
                 "epochs, the p4 CNN alone has not been trained.",
        compare_with=("p4 CNN, half the width",),
        arms={
            "p4 CNN": CNN,
            "pose-supervised STN before a p4 CNN, modulo 90°":
                dict(ANGLE_90, localization_width=4.0),
            "p4 CNN, half the width": dict(CNN, width=0.5, epochs=(30,)),
            "pose-supervised STN before a p4 CNN, modulo 90°, half the width":
                dict(ANGLE_90, localization_width=0.9, width=0.5, epochs=(30,)),
            "p4 CNN, half the width, no holes, batches of 128": dict(CNN, **NO_HOLES),
            "modulo 90°, half the width, no holes, batches of 128":
                dict(ANGLE_90, localization_width=0.9, **NO_HOLES),
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
}
