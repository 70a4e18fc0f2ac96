"""Puts foveal's backbones on timm's list, so that `timm.create_model` and timm's tools take them.

Nothing is registered by an import: call `foveal.models.timm.register()` once. Names are read as text; a network's file
is imported when the network is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveal.index import models
from foveal.models.registry import builder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["register"]


def _entry(name: str) -> Callable[..., nn.Module]:
    """The network of that name under timm's words: in_chans, drop_path_rate, features_only, out_indices."""

    def create(
        pretrained: bool = False,
        *,
        in_chans: int = 3,
        drop_path_rate: float | None = None,
        features_only: bool = False,
        out_indices: tuple[int, ...] | None = None,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **kwargs: Any,
    ) -> nn.Module:
        del pretrained_cfg, pretrained_cfg_overlay, cache_dir  # no weights are offered
        if pretrained:
            raise ValueError(f"no weights for {name} are shipped; leave pretrained out")
        if drop_path_rate is not None:
            kwargs["drop_path"] = drop_path_rate
        model: Any = builder(name)(in_channels=in_chans, **kwargs)
        if not features_only:
            return model
        from timm.models._features import FeatureGetterNet

        indices = tuple(range(len(model.feature_info))) if out_indices is None else out_indices
        return FeatureGetterNet(model, out_indices=indices)

    create.__name__ = create.__qualname__ = name
    return create


def register() -> None:
    """Register every backbone with timm under its name, but for names that timm has itself; may be called again."""
    from timm.models import is_model, register_model

    for name, item in models().items():
        if item.module.startswith("foveal.models.backbone.") and not is_model(name):
            entry = _entry(name)
            entry.__module__ = __name__
            register_model(entry)
