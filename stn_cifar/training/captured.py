"""A training step captured once as a CUDA graph and replayed: small networks wait for launches."""

import torch

from ..console import say
from .step import Step


class CapturedStep(Step):
    """The same step as one CUDA graph, for any precision but fp16.

    The first WARM_UP full batches are eager, on a stream of their own, so that every library and
    buffer is ready; the next is captured; from then on steps are replays. A ragged last batch is
    eager. Where the model cannot be captured, as one that waits for a value, that is said, and all
    steps are eager. After PyTorch's notes on CUDA graphs, "Whole-network capture".

    A replay runs no Python: hooks and prints in a model are heard in the first steps only, and a
    layer that is exchanged later is not seen (weights that are loaded in place are).
    Loss scaling (fp16) decides on the host whether to update: no graph can hold that.
    """

    WARM_UP = 3

    def __init__(self, model, train, optimizer, *args, **options):
        super().__init__(model, train, optimizer, *args, **options)
        self.taken, self.graph, self.result, self.eager = 0, None, None, False
        # what changes from step to step is read from these; None: of the first full batch's size
        self.index, self.forcing = None, torch.zeros((), device=self.device)
        self.rates = [torch.zeros((), device=self.device) for _ in optimizer.param_groups]

    def sample_epoch(self, *args):
        """As Step's, but in place: a graph reads the same addresses for ever."""
        augmented, distorted = self.augmentation_params, self.distortion_params
        super().sample_epoch(*args)
        if augmented is not None:
            self.augmentation_params = augmented.copy_(self.augmentation_params)
        if distorted is not None:
            distorted.theta.copy_(self.distortion_params.theta)
            distorted.patches.copy_(self.distortion_params.patches)
            self.distortion_params = distorted

    def __call__(self, index, teacher_forcing=0.0):
        self.index = index.clone() if self.index is None else self.index
        if self.eager or len(index) != len(self.index):
            return super().__call__(index, teacher_forcing)
        with torch.cuda.device(self.device):
            if self.taken < self.WARM_UP:
                self.taken += 1
                return self._on_its_own_stream(index, teacher_forcing)
            self.index.copy_(index)
            self.forcing.fill_(teacher_forcing)
            for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
                rate.fill_(group["lr"])
            if self.graph is None:
                try:
                    self._capture()
                except RuntimeError as error:
                    say(f"the step cannot be captured as a CUDA graph ({error}); going on without, "
                        "which is slower")
                    self.eager = True
                    return super().__call__(index, teacher_forcing)
            self.graph.replay()
        return tuple(value.clone() for value in self.result)  # the next replay overwrites them

    def _on_its_own_stream(self, *args):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = super().__call__(*args)
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def _capture(self):
        groups, graph = self.optimizer.param_groups, torch.cuda.CUDAGraph()
        floats = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, self.rates, strict=True):
                group["lr"] = rate
            # gradients made while capturing lie in the graph's memory, and replays write them anew
            self.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                self.result = super().__call__(self.index, self.forcing)
        finally:
            for group, rate in zip(groups, floats, strict=True):
                group["lr"] = rate
        self.graph = graph


def make_step(model, train, optimizer, precision, **options):
    """The fastest Step that there is on the device of `train`."""
    captured = train.images.is_cuda and precision != "fp16"
    return (CapturedStep if captured else Step)(model, train, optimizer, precision, **options)
