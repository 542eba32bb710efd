"""Pictures of what a study's models make of images, in images/: which run draws each, and how."""

from dataclasses import dataclass

from .study import Study


@dataclass(frozen=True)
class Picture:
    """A file in images/, drawn by `train` with the config of an arm's last budget and seed 0."""

    file: str
    arm: str
    shows: str


PICTURES = {
    "rotation-shifts": (
        Picture("taught-upright.png", "pose-supervised STN",
                "Ten test photographs, the first of each class, each turned by a random angle; "
                "below them, as the pose-supervised STN hands them on, each with its classifier's "
                "prediction"),
        Picture("mod90-straight.png",
                "pose-supervised STN before a separable p4 CNN, modulo 90°",
                "The same photographs; below them, as the transformer modulo 90° before a "
                "separable p4 CNN hands them on: straight, on any of four sides"),
    ),
    "padding": (
        Picture("tutorial-cifar10-film.gif", "zeros",
                "Film of zeros: every image shrinks onto a grey border"),
        Picture("padding-border-film.gif", "border",
                "Film of border: the images shrink as far, amid streaks"),
        Picture("padding-reflection-film.gif", "reflection",
                "Film of reflection: they shrink amid mirror images"),
        Picture("padding-scale-penalty-film.gif", "zeros, scale penalty",
                "Film of zeros with the scale penalty: the images keep their size, but tilt and "
                "slide"),
        Picture("padding-localization-rate-film.gif", "zeros, localization rate 0.1",
                "Film of zeros with the localization rate 0.1: the images hardly move"),
        Picture("tutorial-cifar10-bands.png", "zeros",
                "What zeros' transformer does to test images, epoch by epoch: it swings to and "
                "fro, and moves all images alike"),
        Picture("padding-localization-rate-bands.png", "zeros, localization rate 0.1",
                "The same with the localization rate 0.1: far less swing, and less zoom"),
    ),
}


def captions(name: str, this: Study) -> dict[str, str]:
    """File -> what it shows and the command that draws it, of each picture of the study `name`."""
    return {picture.file: f"{picture.shows} (drawn by `{command(this, picture.arm)}`)"
            for picture in PICTURES.get(name, ())}


def command(this: Study, arm: str) -> str:
    """`train` with the flags that make the config of `arm`, its last budget and seed 0."""
    epochs = max(budget for name, budget, _ in this.runs() if name == arm)
    config = this.config(arm, epochs, seed=0)
    flags = "".join(f" --{field.replace('_', '-')} {value}"
                    for field, value in config.differences().items())
    return f"train --preset {config.name}{flags}"
