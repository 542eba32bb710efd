"""One training step: eager anywhere, or captured once as a CUDA graph and replayed; and what both are made of."""

import math
import time

import torch
import torch.nn.functional as F

from . import augment, distortions, poses, transforms

PATIENCE = 10  # seconds that choosing a precision may take, unless two steps of each take longer


class Step:
    """A training step: pick images, augment, distort, align, classify, go back, update. Call it with an index tensor.

    index: int64 (B,), into the training images, on the device. Returns the batch's loss and its number of right
    guesses, 0-d tensors on the device: nothing is waited for.
    """

    def __init__(self, model, train, optimizer, config, precision):
        self.model, self.train, self.optimizer, self.config = model, train, optimizer, config
        self.precision, self.device = precision, train.images.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.augmentation, self.drawn = None, None  # the epoch's, and its distortions: one for each training image
        self.told = torch.zeros((), device=self.device)  # share of images whose true pose the transformer is told

    def draw(self, epoch, generator):
        """Draw the epoch's augmentation and distortions, if the config has any, from a CPU generator."""
        augmentation = augment.draw(self.config, self.train.images, epoch, generator)
        if self.augmentation is not None:  # in place, as a captured graph reads the same addresses for ever
            self.augmentation.copy_(augmentation)
        elif augmentation is not None:
            self.augmentation = augmentation.to(self.device)
        if self.config.distortion is None:
            return
        drawn = distortions.draw(self.config.distortion, len(self.train), generator)
        if self.drawn is None:
            self.drawn = drawn.to(self.device)
        else:
            self.drawn.theta.copy_(drawn.theta)
            self.drawn.patches.copy_(drawn.patches)

    def set_progress(self, done):
        """Set each group's learning rate, and the share of poses told; `done`, in [0, 1): how much is over."""
        config = self.config
        self.told.fill_(config.pose_curriculum * (1 - done))
        if config.schedule == "constant" and not config.warmup:
            return
        share = (1 - done) / (1 - config.warmup) if config.schedule == "linear" else 1
        if done < config.warmup:
            share = done / config.warmup
        for group in self.optimizer.param_groups:
            rate = group["initial_lr"] * share
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)  # in place, for the same reason
            else:
                group["lr"] = rate

    def __call__(self, index):
        train, config = self.train, self.config
        images, labels = train.images[index], train.labels[index]
        pose = None if train.poses is None else train.poses[index]
        if self.augmentation is not None:
            images = augment.apply(images, self.augmentation[index], config.cutout)
        if self.drawn is not None:
            images, pose = distortions.apply(images, self.drawn[index]), self.drawn.theta[index]
        told = None
        if self.model.answers:
            undoing = poses.undoing(pose, config.pose_kind)
            told = undoing, torch.rand(len(index), device=self.device) < self.told
        with autocast(self.device, self.precision):
            logits, alignment = self.model.learn(self.model.normalize(images), told)
            logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        loss = loss + transformer_loss(alignment.grid, pose, config)
        if self.model.answers:
            loss = loss + config.pose_weight * poses.loss(alignment.answer, undoing, config.pose_kind)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), (logits.argmax(1) == labels).sum()


class CapturedStep(Step):
    """The same step as one CUDA graph: small networks are bound by the launching of kernels, which this does once.

    The first WARM_UP full batches run eagerly on a side stream, so that every library and buffer is ready; the next
    is captured; from then on steps are replays. A ragged last batch runs eagerly. As in PyTorch's notes on CUDA graphs,
    "Whole-network capture". Only with config.cuda_graph, as no GPU has run it yet.
    """

    WARM_UP = 3

    def __init__(self, *args):
        super().__init__(*args)
        rates_as_tensors(self.optimizer, self.device)  # after a resume, which may have brought floats
        self.taken, self.graph, self.index, self.result = 0, None, None, None

    def __call__(self, index):
        if len(index) != self.config.batch_size:
            return super().__call__(index)
        if self.taken < self.WARM_UP:
            self.taken += 1
            return self._on_side_stream(index)
        if self.graph is None:
            self._capture(index)
        self.index.copy_(index)
        self.graph.replay()
        return tuple(value.clone() for value in self.result)  # the next replay overwrites them

    def _on_side_stream(self, index):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = super().__call__(index)
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def _capture(self, index):
        self.index = index.clone()
        # gradients made while capturing lie in the graph's own memory, and every replay writes them anew
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.result = super().__call__(self.index)
        except RuntimeError as error:  # no way back from here: a broken capture spoils the card's random state
            raise RuntimeError(f"cuda_graph: the step cannot be captured here ({error}); set cuda_graph=False and "
                               "start the process afresh") from error
        self.graph = graph


def make_step(model, train, optimizer, config, precision):
    """The training step that `config` asks for: captured where it says cuda_graph and there is CUDA, else eager."""
    captured = config.cuda_graph and train.images.is_cuda
    if captured and precision == "fp16":
        raise ValueError("cuda_graph: True with precision fp16, whose loss scaling is not captured; set it to False")
    return (CapturedStep if captured else Step)(model, train, optimizer, config, precision)


def make_optimizer(model, config):
    """SGD; the localization network slower by `localization_lr_scale`, biases and normalization without decay."""
    rates = {model.classifier: config.learning_rate}
    if model.localization is not None:
        rates[model.localization] = config.learning_rate * config.localization_lr_scale
    if model.pose_head is not None:
        rates[model.pose_head] = config.learning_rate
    both = set(model.classifier.parameters())  # layers that the localization network shares learn as the classifier's
    groups = [dict(params=[p for p in part.parameters()
                           if (p.ndim > 1) == decay and (part is model.classifier or p not in both)],
                   lr=rate, initial_lr=rate, weight_decay=config.weight_decay if decay else 0.0)
              for part, rate in rates.items() for decay in (True, False)]
    captured = config.cuda_graph and model.mean.is_cuda
    # fused is faster on the CPU, and can be captured; not with fp16: where the first step overflows, as loss scaling
    # lets it, fused SGD would take its momentum from memory that nobody has written to
    fused = captured or (not model.mean.is_cuda and config.precision != "fp16")
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0,
                           fused=fused or None)


def rates_as_tensors(optimizer, device):
    """Make each group's learning rate a tensor: a captured graph can read a new value there, and of a float never."""
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(float(group["lr"]), device=device)


def transformer_loss(grid, pose, config):
    """The terms of the loss that concern the transformer, from its sampling grid (B, H, W, 2): a scalar, or 0.

    outside: how far samples lie outside the picture, half-widths, mean over samples and both axes.
    identity: mean squared distance of samples from where the identity would put them, half-widths squared.
    scale: mean squared excess of |log scale| over log max_scale; scale: the grid's spread over the identity's.
    pose: mean squared distance of samples from where they would lie had the known pose been undone exactly.
    All read the grid alone, so they serve every family.
    """
    loss = 0
    if config.outside_weight:
        loss += config.outside_weight * F.relu(grid.abs() - 1).mean()
    still = transforms.identity_grid(grid)
    if config.identity_weight:
        loss += config.identity_weight * (grid - still).square().sum(-1).mean()
    if config.scale_weight:
        area = transforms.spread(grid) / transforms.spread(still)
        log_scale = 0.5 * area.clamp_min(1e-6).log()  # finite even where the grid has collapsed to a point
        loss += config.scale_weight * F.relu(log_scale.abs() - math.log(config.max_scale)).square().mean()
    if config.pose_weight and not config.pose_cells:  # cells are taught by poses.loss
        undone = transforms.apply(pose, grid)  # applied(answered(p)): p itself, where all is undone
        loss += config.pose_weight * (undone - still).square().sum(-1).mean()
    return loss


def autocast(device, precision):
    """The autocast context of `precision`: "fp32", "bf16" or "fp16"."""
    dtype = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def choose_precision(model, images, config):
    """The precision that `config.precision` stands for here: "auto" times a few steps of each and takes the faster.

    Small networks gain nothing on many machines, and bf16 without hardware for it is slower than float32.
    """
    if config.precision != "auto":
        return config.precision
    # a distortion puts them on a larger canvas; speed does not depend on what they show
    images = images.new_zeros(len(images), config.channels, config.image_size, config.image_size)
    # cards before compute capability 8.0 emulate bf16, slowly, and claim to support it (pytorch#148322)
    old_card = images.is_cuda and torch.cuda.get_device_capability(images.device) < (8, 0)
    narrow = "fp16" if old_card else "bf16"
    seconds = {precision: [] for precision in ("fp32", narrow)}
    was_training = model.training
    model.eval()  # no dropout: the random state stays as it is
    began = time.perf_counter()
    while len(seconds["fp32"]) < 24 and (len(seconds["fp32"]) < 2 or time.perf_counter() - began < PATIENCE):
        for precision in seconds:
            started = time.perf_counter()
            with autocast(images.device, precision):
                logits, alignment = model.learn(model.normalize(images))
            total = logits.float().sum()
            (total if alignment.answer is None else total + alignment.answer.float().sum()).backward()
            model.zero_grad(set_to_none=True)
            if images.is_cuda:
                torch.cuda.synchronize()
            seconds[precision].append(time.perf_counter() - started)
    model.train(was_training)
    # the least time, not the median: what else the machine does must not decide. The first is warm-up
    fp32, other = (min(times[1:]) for times in seconds.values())
    return narrow if other < 0.9 * fp32 else "fp32"
