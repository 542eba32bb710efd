"""The presets, each with its reasons; what one does not name is as in the tutorial."""

PRESETS = {
    # The PyTorch STN tutorial carried to CIFAR-10, kernels, strides and recipe kept (40 thousand
    # parameters): Config's defaults.
    "tutorial": {},
    # The same 50 epochs and fewer parameters, with what has been learnt since: depthwise-separable
    # residual blocks, a schedule. The localization network learns slowly, and is pulled to the
    # identity a little: otherwise it zooms out, a fifth of its samples lie outside the picture, and
    # accuracy is some points lower (study `ladder`, a pilot).
    "compact": dict(model="separable", learning_rate=0.1, localization_lr_scale=0.01,
                    identity_weight=0.1, momentum=0.9, weight_decay=3e-4, schedule="linear",
                    warmup=0.1, batch_size=128, flip=True, shift=3),
    # After airbench96 (Jordan 2024, arXiv 2404.00498), behind a transformer: for a GPU.
    "strong": dict(model="strong", learning_rate=0.4, localization_lr_scale=0.0025,
                   identity_weight=0.1, momentum=0.9, weight_decay=5e-4, schedule="linear",
                   warmup=0.1, batch_size=512, label_smoothing=0.2, flip=True, shift=4, cutout=12,
                   epochs=40),
    # The tutorial's networks where a transformer can be seen at work: without being told the pose
    # it learns to put glyphs upright. What did it: a plain, slow recipe (with momentum 0.9 the
    # transformer ran off the picture in 10 epochs), a schedule (without it one seed of two ended on
    # a bad step, at 93 % instead of 99.9 %), and a little pull to the identity (without it
    # "upright" drifts: one seed turned all glyphs by a further 10 degrees).
    "glyphs": dict(dataset="glyphs", transform="similarity", identity_weight=0.05,
                   schedule="linear", epochs=30),
    # CIFAR-10 turned by any angle, and a pose-supervised STN: in training it knows how each picture
    # was turned. Small, for many runs on few cores. What did it (study `arms`): a distribution over
    # angles instead of one number; a p4 group convolutional localization network; teacher forcing
    # that is annealed to 0, so the classifier sees upright pictures first.
    "taught": dict(model="light", transform="rotation", distortion="rotation", pose_weight=1.0,
                   pose_bins=36, teacher_forcing=1.0, localization="p4", localization_width=2.0,
                   learning_rate=0.1, momentum=0.9, weight_decay=5e-4, schedule="linear",
                   warmup=0.15, batch_size=128, flip=True, epochs=8),
}
