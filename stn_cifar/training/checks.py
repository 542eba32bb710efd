"""Do model, data and config go together? Asked before training, not after hours of it."""

from ..config import check_config
from ..data import Data
from ..distortions import DISTORTIONS
from ..spatial_transformer import IdentityTransformer, SpatialTransformer
from ..stn import check_model
from ..transforms import FAMILIES

FREE = ("name", "data_root", "device", "epochs")  # fields that may differ between model and run


def check_together(model, data, config):
    """`config` as it applies to `data`; ValueError, naming the fields, unless all three fit."""
    check_model(model)
    check_config(config)
    if not isinstance(data, Data):
        raise ValueError(f"data: a {type(data).__name__}; must be a Data(train=Split(...), ...)")
    fitted = for_data(config, data)
    _check_config(model, data, fitted)
    _check_data(model, data, fitted)
    return fitted


def for_data(config, data):
    """`config` as it applies to `data`: images in known poses are not distorted further."""
    if not data.posed or config.distortion is None:
        return config
    return config.replace(distortion=None, flip=False, shift=0)


def _check_config(model, data, config):
    """ValueError, naming the fields that differ, unless `model` is what `config` says."""
    own = model.transformer
    if not isinstance(own, SpatialTransformer):
        raise ValueError(f"model: its transformer is a {type(own).__name__}; must be a "
                         "SpatialTransformer, or for none an IdentityTransformer")
    if model.config is not None:
        built = for_data(model.config, data).to_dict()
    else:  # put together by hand: what that tells
        built = dict(stn=not isinstance(own, IdentityTransformer), transform=own.family.name,
                     pose_bins=own.pose_bins.bins if own.pose_bins else 0,
                     iterations=own.iterations, padding_mode=own.padding_mode,
                     supersample=own.supersample)
    now = config.to_dict()
    differ = [f"{key}: {now[key]!r}, but the model was built with {built[key]!r}"
              for key in built if key not in FREE and now[key] != built[key]]
    if differ:
        raise ValueError("; ".join(differ) + "; build_model(config) makes a model for this config")


def _check_data(model, data, config):
    """ValueError, naming what is wrong, unless `model` and losses fit the images."""
    size = data.size
    if config.distortion is not None:
        size = DISTORTIONS[config.distortion].canvas_size(size)
    if model.input_shape != (data.channels, size, size):
        raise ValueError(f"model: it takes images (C, H, W) of {model.input_shape}, but "
                         f"{data.name} has {(data.channels, size, size)}; "
                         "build_model(config, data) makes one for these")
    if model.num_classes != len(data.classes):
        raise ValueError(f"model: it tells {model.num_classes} classes apart, but {data.name} has "
                         f"{len(data.classes)}; build_model(config, data) makes one for these")
    check_size("val", data.val, model)
    known = data.posed and data.train.poses.shape[-1] == 3
    if config.distortion is not None:
        known = FAMILIES[DISTORTIONS[config.distortion].family].is_matrix
    weight = config.loss_weights()["pose"]
    if weight and not known:
        raise ValueError(f"pose_weight: {weight} needs a pose that is known and a "
                         "matrix: dataset='glyphs', or a distortion other than 'elastic'; without "
                         "one, set pose_weight=0 and pose_bins=0")
    if weight and config.distortion is None and (config.flip or config.shift):
        raise ValueError(f"pose_weight: {weight} with flip={config.flip} and "
                         f"shift={config.shift}, which make the known poses of {data.name} wrong; "
                         "set flip=False and shift=0, or pose_weight=0")
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("model: none of its parameters requires a gradient; nothing would be "
                         "trained")
    if set(model.transformer.parameters()) & set(model.classifier.parameters()):
        raise ValueError("model: transformer and classifier share parameters; must be apart, as "
                         "each has its own learning rate")
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError("model: it was built within torch.inference_mode(), so it cannot be "
                         "trained; build it outside")


def check_size(name, split, model):
    """ValueError unless the images of `split`, if it is one, are as large as `model` takes them."""
    if split is not None and (found := tuple(split.images.shape[1:])) != model.input_shape:
        raise ValueError(f"{name}: images of {found}, but the model takes {model.input_shape}; "
                         "with a distortion, distort val and test too: "
                         "stn_cifar.data.distorted(split, distortion)")
