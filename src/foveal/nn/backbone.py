"""What timm's tools ask of every backbone whose feature maps come from a list of modules, one map a module.

Heads, pooling, layer groups, weight decay and recomputed activations stand here once. A family with a head of its own
names its classifiers in `heads` and replaces `pool` or `classify`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from timm.layers import DropPath
from timm.models import checkpoint
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Backbone"]

# Last parts of the names of parameters that hold positions, decays, skips and step sizes.
_UNDECAYED = {"pos_embed", "cls_token", "A_log", "A_b_log", "D", "D_b", "dt_bias"}


class Backbone(nn.Module):
    """Base of `Pyramid` and `Isotropic`, which set what is declared here."""

    parts: str
    """Name of the attribute that holds the modules, an `nn.ModuleList`."""

    stem_parts: tuple[str, ...]
    """Names of the modules and parameters that stand before the list."""

    heads: tuple[str, ...] = ("head",)
    """Names of the classifiers, whose logits are averaged."""

    pools: tuple[str, ...] = ("avg", "")
    """Values of `global_pool`; "" leaves the last map as it is."""

    global_pool: str = "avg"
    grad_checkpointing: bool = False
    in_channels: int
    num_classes: int
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]
    norm: nn.Module
    head: nn.Module
    head_drop: nn.Module

    @property
    def in_chans(self) -> int:
        """Channels of the picture, under timm's name."""
        return self.in_channels

    @property
    def drop_rate(self) -> float:
        """Probability of dropping a feature before the classifier while training."""
        return float(getattr(self.head_drop, "p", 0.0))

    def __prepare_scriptable__(self) -> None:
        """Refuse `torch.jit.script`, which calls this first.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be scripted: its operators are registered with torch.library; "
            "take torch.export, torch.jit.trace or foveal.export.onnx.to_onnx"
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose between memory and time in training.

        Args:
            enable: whether activations within blocks are computed again in the backward pass instead of kept.
        """
        self.grad_checkpointing = enable

    def through(self, module: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """Call a module, or each module of a sequence, as `set_grad_checkpointing` says.

        Args:
            module: the module, or an `nn.Sequential`.
            x: its input.
            *args: further arguments of a module that is no sequence.

        Returns:
            Its output.
        """
        if not self.grad_checkpointing:
            return module(x, *args)
        for layer in module if isinstance(module, nn.Sequential) else [module]:
            x = checkpoint(layer, x, *args)
        return x

    def set_global_pool(self, global_pool: str) -> None:
        """Choose what the head reads.

        Args:
            global_pool: one of `pools`.

        Raises:
            ValueError: another word, or "" while there is a classifier.
        """
        if global_pool not in self.pools:
            raise ValueError(f"global_pool must be one of {', '.join(map(repr, self.pools))}, got {global_pool!r}")
        if not global_pool and self.num_classes:
            raise ValueError(
                f"global_pool '' leaves nothing to classify, got {self.num_classes} classes; give num_classes=0"
            )
        self.global_pool = global_pool

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put fresh classifiers in place, on the device and in the type of the other weights.

        Args:
            num_classes: 0 for none.
            global_pool: one of `pools`; None leaves it.
        """
        self.num_classes = num_classes
        self.set_global_pool(self.global_pool if global_pool is None else global_pool)
        like = next(self.parameters())
        for name in self.heads:
            head = self.make_classifier(num_classes).to(like.device, like.dtype) if num_classes else nn.Identity()
            setattr(self, name, head)

    def make_classifier(self, num_classes: int) -> nn.Linear:
        """One classifier.

        Args:
            num_classes: at least 1.

        Returns:
            A layer, (B, head_hidden_size) to (B, num_classes).
        """
        return nn.Linear(self.head_hidden_size, num_classes)

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """The last layer.

        Returns:
            A linear layer, or the identity; a tuple where there are several heads, as from timm's DeiT.
        """
        found = tuple(getattr(self, name) for name in self.heads)
        return found[0] if len(found) == 1 else found

    def pool(self, x: Tensor) -> Tensor:
        """What the classifier reads.

        Args:
            x: what `forward_features` gives.

        Returns:
            (B, head_hidden_size).
        """
        raise NotImplementedError

    def classify(self, x: Tensor) -> Any:
        """Logits of what `pool` gives, the mean over all heads.

        Args:
            x: (B, head_hidden_size).

        Returns:
            (B, num_classes); x itself where there is no classifier.
        """
        first, *others = (getattr(self, name)(x) for name in self.heads)
        return (first + sum(others)) / len(self.heads) if others else first

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Pool and classify.

        Args:
            x: what `forward_features` gives.
            pre_logits: whether to stop before the classifier.

        Returns:
            (B, num_classes) or (B, head_hidden_size); x with dropout where `global_pool` is "".
        """
        x = self.head_drop(self.pool(x) if self.global_pool else x)
        return x if pre_logits else self.classify(x)

    def no_weight_decay(self) -> set[str]:
        """Parameters that training leaves out of weight decay: positions, decays, skips and step sizes.

        Returns:
            Their names.
        """
        found = set()
        for name, value in self.named_parameters():
            last = name.rpartition(".")[2]
            # a bias of several dimensions is a table of relative positions; timm knows the others
            if last in _UNDECAYED or (last.startswith("bias") and value.ndim > 1):
                found.add(name)
        return found

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The order of the layers, for learning rates that fall from the head to the stem.

        Args:
            coarse: whether a layer is a whole module of the list, instead of a block: what holds a `DropPath`.
                Whatever else such a module holds belongs to the first of its blocks.

        Returns:
            Patterns of parameter names, as timm's `group_parameters` takes them; norm and heads match none and come
            last.
        """
        stem = rf"^(?:{'|'.join(self.stem_parts)})(?:\.|$)"
        if coarse:
            return {"stem": stem, "blocks": rf"^{self.parts}\.(\d+)"}
        patterns: list[tuple[str, tuple[int]]] = []
        number = 0
        for part, module in getattr(self, self.parts).named_children():
            blocks: list[str] = []
            for name, inner in module.named_modules(prefix=f"{self.parts}.{part}"):
                inside = any(name.startswith(f"{block}.") for block in blocks)
                if not inside and any(isinstance(child, DropPath) for child in inner.children()):
                    blocks.append(name)
            patterns += [(rf"^{re.escape(name)}\.", (number + i,)) for i, name in enumerate(blocks)]
            patterns.append((rf"^{self.parts}\.{part}\.", (number,)))
            number += max(len(blocks), 1)
        return {"stem": stem, "blocks": patterns}

    def chosen(self, indices: int | Sequence[int] | None, output_fmt: str = "NCHW") -> list[int]:
        """Which modules' maps are meant.

        Args:
            indices: negative from the end; an int takes the last so many; None takes all.
            output_fmt: "NCHW".

        Returns:
            Indices from 0, in the order given.

        Raises:
            ValueError: an index or format that there is not.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt!r}")
        count = len(getattr(self, self.parts))
        if indices is None:
            return list(range(count))
        wanted = range(count)[-indices:] if isinstance(indices, int) else indices
        if any(not -count <= i < count for i in wanted):
            raise ValueError(f"indices must be in {-count}…{count - 1}, got {list(wanted)}")
        return [i % count for i in wanted]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what intermediate maps do not need.

        Args:
            indices: as for `forward_intermediates`.
            prune_norm: whether the last norm goes; it goes with the module that it is made for.
            prune_head: whether the classifier goes; it too goes with the last module.

        Returns:
            Indices of the modules whose maps are kept for output.
        """
        taken = self.chosen(indices)
        last = max(taken)
        channels = self.feature_info[last]["num_chs"]
        narrower = channels != self.num_features
        setattr(self, self.parts, getattr(self, self.parts)[: last + 1])
        if prune_norm or narrower:
            self.norm = nn.Identity()
        if prune_head or narrower:
            self.reset_classifier(0)
        if narrower:
            self.num_features = self.head_hidden_size = channels
        return taken
