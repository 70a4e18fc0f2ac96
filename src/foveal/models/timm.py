"""Puts foveal's backbones on timm's list, so that `timm.create_model` and timm's scripts take them.

Nothing is registered by an import: call `foveal.models.timm.register()` once. Names are read as text; a network's file
is imported when the network is built. What timm says differently:

    in_chans        in_channels
    drop_path_rate  drop_path
    drop_rate       dropout before the classifier
    global_pool     "avg", "token" where there is a class token, "" for the last map or tokens
    img_size        the grid that positions are learned for; refused by networks that have none

No weights are shipped. `pretrained_cfg_overlay={"file": …}` loads a file, in the names of this package or, where the
family's file has a `from_authors`, in those of the paper's authors.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from foveal.index import models
from foveal.models.registry import builder, create_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

__all__ = ["register"]

# Networks without what timm's tools ask for: xT has a backbone of timm's for each region, and no map of the whole; CCNN
# and HyperZZW have as many axes as their data, and no layer that knows of two.
APART = {f"foveal.models.backbone.{name}" for name in ("xt", "ccnn", "hyperzzw")}

# timm reads this table of its entries' module. What depends on the network is filled in when it is built.
default_cfgs: dict[str, dict[str, Any]] = {}
_UNKNOWN = -1  # classes of weights that nobody named
_INPUT: dict[str, Any] = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}


def _grid(name: str, img_size: int | tuple[int, int], sizes: Mapping[str, Any]) -> tuple[int, int]:
    """Patches that pictures of this size have."""
    known = inspect.signature(builder(name)).parameters
    if "grid" not in known:
        raise ValueError(
            f"{name} learns no positions and takes pictures of any size, got img_size={img_size}; leave it out"
        )
    side = sizes.get("patch_size", known["patch_size"].default)
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return -(-height // side), -(-width // side)


def _filter(name: str) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]:
    """The `checkpoint_filter_fn` of timm: weights under the names that they have here."""

    def renamed(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        known = model.state_dict().keys() & state_dict.keys()
        module = importlib.import_module(models()[name].module)
        if 2 * len(known) > len(state_dict) or not hasattr(module, "from_authors"):
            return state_dict
        return module.from_authors(state_dict)

    return renamed


def _about(name: str, model: Any) -> dict[str, Any]:
    """What timm's configuration says of a network and of weights for it."""
    from torch import nn

    height, width = _INPUT["input_size"][1:]
    reduction = model.feature_info[-1]["reduction"]
    return {
        "num_classes": inspect.signature(builder(name)).parameters["num_classes"].default,
        "pool_size": (-(-height // reduction), -(-width // reduction)),
        "first_conv": next(part for part, module in model.named_modules() if isinstance(module, nn.Conv2d)),
        "classifier": model.heads[0] if len(model.heads) == 1 else model.heads,
    }


def _entry(name: str) -> Callable[..., nn.Module]:
    """The network of that name under timm's words."""

    def create(
        pretrained: bool = False,
        *,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        num_classes: int | None = None,
        in_chans: int | None = None,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        global_pool: str | None = None,
        img_size: int | tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        from timm.models import build_model_with_cfg, resolve_pretrained_cfg
        from torch.nn import Dropout

        overlay = dict(pretrained_cfg_overlay or {})
        weights = resolve_pretrained_cfg(name, pretrained_cfg, overlay)
        if pretrained and not (weights.has_weights or weights.state_dict):
            raise ValueError(
                f"no weights for {name} are shipped; leave pretrained out, or name a file by "
                "pretrained_cfg_overlay={'file': …}"
            )
        theirs = {*inspect.signature(build_model_with_cfg).parameters, "features_only", "out_indices", "feature_cls"}
        sizes = {word: value for word, value in kwargs.items() if word not in theirs}
        if img_size is not None:
            sizes["grid"] = _grid(name, img_size, sizes)
        if num_classes is None and weights.num_classes >= 0:
            num_classes = weights.num_classes
        if num_classes is not None:
            sizes["num_classes"] = num_classes
        if drop_path_rate is not None:
            sizes["drop_path"] = drop_path_rate
        sizes["in_channels"] = weights.input_size[0] if in_chans is None else in_chans
        model: Any = create_model(name, **sizes).train()
        if drop_rate is not None:
            model.head_drop = Dropout(drop_rate)
        if global_pool is not None:
            model.set_global_pool(global_pool)

        for word, value in _about(name, model).items():
            if getattr(weights, word) in {None, _UNKNOWN}:
                overlay.setdefault(word, value)
        return build_model_with_cfg(
            lambda **_: model,
            name,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=_filter(name),
            feature_cfg={"out_indices": tuple(range(len(model.feature_info))), "feature_cls": "getter"},
            num_classes=model.num_classes,
            in_chans=model.in_channels,
            img_size=img_size,
            **{word: value for word, value in kwargs.items() if word in theirs},
        )

    create.__name__ = create.__qualname__ = name
    return create


def register() -> None:
    """Register every backbone with timm under its name, but for names that timm has itself; may be called again."""
    from timm.models import is_model, register_model

    exported = list(__all__)
    for name, item in models().items():
        backbone = item.module.startswith("foveal.models.backbone.") and item.module not in APART
        if backbone and not is_model(name):
            default_cfgs[name] = {**_INPUT, "num_classes": _UNKNOWN}
            entry = _entry(name)
            entry.__module__ = __name__
            register_model(entry)
    __all__[:] = exported  # timm adds its entries, which are no attributes of this module
