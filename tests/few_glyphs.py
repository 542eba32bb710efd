"""A study whose workers on a cluster draw few glyphs: a run takes seconds."""

from experiments.studies import Study
from stn_cifar.data import glyphs


def few(count, seed, size=32, make=glyphs.make_glyphs):
    return make(count // 50, seed, size)


class FewGlyphs(Study):
    def __setstate__(self, state):  # it arrives where it is to run: in a process of its own
        self.__dict__.update(state)
        glyphs.make_glyphs = few


STUDY = FewGlyphs("Does it survive?", "tutorial", {"with": {}, "without": dict(stn=False)},
                  common=dict(dataset="glyphs", precision="fp32"), epochs=(8,), seeds=3)
