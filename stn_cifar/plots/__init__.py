"""Figures, a film of the training, a live view: `plots.NAME`.

Each figure is a matplotlib Figure 800 pixels wide, readable without colour vision, in a style of
its own. Titles say data set, preset, transformer and epoch, notes what to look for.
"""
# ruff: noqa: I001  (names in lines, not one a line)

from .curves import (compare, confusion, curves, robustness, rotation_errors, theta_bands,
                     theta_histograms)
from .diagrams import families, sampled_regions, single_image
from .film import Film, Live
from .images import (class_means, first_of_each_class, mistakes, pairs, samples, strip, title_of,
                     turned_and_upright)
from .style import (BLUE, GREEN, GREY, ORANGE, RED, STYLES, titled_figure, light_png, own_style,
                    save)

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "RED", "STYLES", "Film", "Live", "class_means",
           "compare", "confusion", "curves", "families", "first_of_each_class", "light_png",
           "mistakes", "own_style", "pairs", "robustness", "rotation_errors", "sampled_regions",
           "samples", "save", "single_image", "strip", "theta_bands", "theta_histograms",
           "title_of", "titled_figure", "turned_and_upright"]
