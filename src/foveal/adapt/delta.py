"""Deltas: what an adaptation changes in a model, kept apart from it as a small file.

A delta maps names of parameters and buffers to changes. It folds into the model it was made for, adds to other deltas
of that model, is scaled, and is taken off again bit for bit:

    undo = delta.fold_(model)          # W ← W + ΔW
    undo()                             # the former weights, unchanged
    both = 0.5 * first + second        # low-rank factors are stacked, so that nothing is lost
    delta.save("delta.safetensors")

Three kinds of change are here: `Dense` holds ΔW itself, `LowRank` its factors, `Replaced` a whole new tensor. Methods
add their own, such as a Kronecker sum or one bit a weight.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from foveal.errors import FovealError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["AdaptError", "Change", "Delta", "Dense", "LowRank", "Replaced", "fingerprint", "tensor_of"]

FORMAT = 1
_KEY, _JOIN = "foveal.delta", "::"


class AdaptError(FovealError, ValueError):
    """A model, data or a delta that cannot be used as asked."""


class Change(Protocol):
    """The change of one tensor: a frozen dataclass whose fields are tensors."""

    kind: ClassVar[str]  # its name in files, a key of `foveal.adapt.table.KINDS`

    def difference(self) -> Tensor:
        """What is added to the tensor.

        Returns:
            ΔW, with as many values as the tensor; a convolution's kernel may be flattened.
        """
        ...

    def scaled(self, factor: float) -> Change:
        """The change times a number.

        Args:
            factor: any number.

        Returns:
            A change that adds factor · ΔW.
        """
        ...


@dataclass(frozen=True)
class Dense:
    """A change kept as it is.

    Args:
        value: ΔW, of the tensor's shape.
    """

    value: Tensor
    kind: ClassVar[str] = "dense"

    def difference(self) -> Tensor:
        """See `Change`.

        Returns:
            ΔW.
        """
        return self.value

    def scaled(self, factor: float) -> Dense:
        """See `Change`.

        Args:
            factor: any number.

        Returns:
            The scaled change.
        """
        return Dense(factor * self.value)


@dataclass(frozen=True)
class LowRank:
    """A change of rank r, kept as two factors: ΔW = up · down.

    Args:
        up: (C_out, r).
        down: (r, C_in·k·k).
    """

    up: Tensor
    down: Tensor
    kind: ClassVar[str] = "low-rank"

    def difference(self) -> Tensor:
        """See `Change`.

        Returns:
            ΔW, (C_out, C_in·k·k).
        """
        return self.up @ self.down

    def scaled(self, factor: float) -> LowRank:
        """See `Change`.

        Args:
            factor: any number.

        Returns:
            The same factors, `up` scaled.
        """
        return LowRank(factor * self.up, self.down)


@dataclass(frozen=True)
class Replaced:
    """A tensor in place of the former one, such as the head for other classes; its shape may differ.

    Args:
        value: new tensor.
    """

    value: Tensor
    kind: ClassVar[str] = "replaced"

    def difference(self) -> Tensor:
        """There is none.

        Returns:
            Nothing.

        Raises:
            AdaptError: always.
        """
        raise AdaptError("a replaced tensor has no difference; fold the delta, or leave the tensor out of it")

    def scaled(self, factor: float) -> Replaced:
        """See `Change`.

        Args:
            factor: 1; half a new head is none.

        Returns:
            The same change.

        Raises:
            AdaptError: another factor.
        """
        if factor != 1:
            raise AdaptError(f"a replaced tensor cannot be scaled by {factor}; leave it out with `only`")
        return self


def fingerprint(tensor: Tensor) -> str:
    """A hash of a tensor, to tell whether a delta meets the weights it was made for.

    Args:
        tensor: any.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, last = name.rpartition(".")
    return model.get_submodule(parent), last


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a model another tensor under a name; a linear layer learns its new size."""
    module, last = _owner(model, name)
    store: dict[str, Any] = module._parameters if last in module._parameters else module._buffers
    store[last] = tensor
    if isinstance(module, nn.Linear) and last == "weight":
        module.out_features, module.in_features = tensor.shape


def tensor_of(model: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer by its name.

    Args:
        model: any.
        name: dotted name, as `state_dict` has it.

    Returns:
        The tensor; None if the model has none of this name.
    """
    try:
        module, last = _owner(model, name)
    except AttributeError:
        return None
    return module._parameters.get(last) if last in module._parameters else module._buffers.get(last)


@dataclass(frozen=True)
class Delta:
    """Changes of a model's tensors.

    Args:
        changes: name of a parameter or buffer → its change.
        base: name → `fingerprint` of the tensor before the change; names that are missing are not checked.
        about: plain facts for whoever reads the file: model, method, classes.
    """

    changes: Mapping[str, Change]
    base: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> int:
        """Number of values that are stored."""
        return sum(tensor.numel() for tensor in self._tensors().values())

    @property
    def bytes(self) -> int:
        """Bytes of these values, without their names."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}{_JOIN}{part.name}": getattr(change, part.name)
            for name, change in self.changes.items()
            for part in fields(change)  # type: ignore[arg-type]
        }

    def only(self, keep: Callable[[str], bool]) -> Delta:
        """The part of the delta that changes some tensors.

        Args:
            keep: function from a tensor's name to whether its change stays.

        Returns:
            A delta of these changes.
        """
        names = [name for name in self.changes if keep(name)]
        return replace(
            self,
            changes={name: self.changes[name] for name in names},
            base={name: self.base[name] for name in names if name in self.base},
        )

    def fold_(self, model: nn.Module, *, check: bool = True) -> Callable[[], None]:
        """Change a model's weights in place; it then costs what it cost before.

        Args:
            model: the model that the delta was made for.
            check: whether its weights must be the ones that the delta was made for.

        Returns:
            Function without arguments that gives the model its former tensors back, bit for bit.

        Raises:
            AdaptError: a model without these tensors, with tensors of other shapes or of other values.
        """
        former = {name: self._former(model, name, check=check) for name in self.changes}
        with torch.no_grad():
            made = {name: _changed(name, former[name], change) for name, change in self.changes.items()}
        for name, value in made.items():
            learns = former[name].requires_grad
            _put(model, name, nn.Parameter(value, learns) if isinstance(former[name], nn.Parameter) else value)

        def undo() -> None:
            for name, tensor in former.items():
                _put(model, name, tensor)

        return undo

    def _former(self, model: nn.Module, name: str, *, check: bool) -> Tensor:
        tensor = tensor_of(model, name)
        if tensor is None:
            made_for = f" ({self.about['model']})" if "model" in self.about else ""
            raise AdaptError(
                f"the delta changes {name!r}, which {type(model).__name__} does not have; build the model that it was "
                f"made for{made_for}"
            )
        wanted = self.base.get(name, "")
        if check and wanted and (found := fingerprint(tensor)) != wanted:
            raise AdaptError(
                f"the delta was made for other weights: {name!r} has the fingerprint {found}, not {wanted}; load the "
                "model that was adapted, take off the delta that is folded in already (deltas add up before they are "
                "folded), or fold with check=False"
            )
        return tensor

    def __mul__(self, factor: float) -> Delta:
        return replace(self, changes={name: change.scaled(factor) for name, change in self.changes.items()})

    __rmul__ = __mul__

    def __add__(self, other: Delta) -> Delta:
        changes, base = dict(self.changes), dict(self.base)
        for name, change in other.changes.items():
            if base.get(name) and other.base.get(name) and base[name] != other.base[name]:
                raise AdaptError(
                    f"deltas of different weights do not add up: {name!r} had the fingerprints {base[name]} and "
                    f"{other.base[name]}; adapt one and the same model"
                )
            changes[name] = _sum(name, changes[name], change) if name in changes else change
            if name in other.base:
                base[name] = other.base[name]
        return Delta(changes, base, {**other.about, **self.about})

    def save(self, path: Path | str) -> None:
        """Write the delta to one file.

        Args:
            path: .safetensors file.
        """
        from safetensors.torch import save_file

        kinds = {name: change.kind for name, change in self.changes.items()}
        said = {"format": FORMAT, "kinds": kinds, "base": dict(self.base), "about": dict(self.about)}
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in self._tensors().items()}
        save_file(tensors, path, metadata={_KEY: json.dumps(said)})

    @classmethod
    def load(cls, path: Path | str) -> Delta:
        """Read a delta.

        Args:
            path: file written by `save`.

        Returns:
            The delta.

        Raises:
            AdaptError: no such file, or one that is no delta or of another version.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(_KEY)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (OSError, SafetensorError) as error:
            raise AdaptError(f"{path}: cannot be read ({error}); give a file written by foveal adapt") from error
        if text is None:
            raise AdaptError(f"{path}: no delta but weights; give a file written by foveal adapt")
        said = json.loads(text)
        if said["format"] != FORMAT:
            raise AdaptError(f"{path}: format {said['format']}, this foveal reads {FORMAT}; update foveal")
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            owner, _, part = name.rpartition(_JOIN)
            parts[owner][part] = tensor
        changes = {name: _made(kind, parts[name], path) for name, kind in said["kinds"].items()}
        return cls(changes, said["base"], said["about"])


def _changed(name: str, tensor: Tensor, change: Change) -> Tensor:
    if isinstance(change, Replaced):
        return change.value.to(tensor).clone()
    difference = change.difference()
    if difference.numel() != tensor.numel():
        raise AdaptError(
            f"the change of {name!r} has the shape {tuple(difference.shape)}, the tensor {tuple(tensor.shape)}; build "
            "the model that the delta was made for"
        )
    return tensor.detach() + difference.reshape(tensor.shape).to(tensor)


def _sum(name: str, first: Change, second: Change) -> Change:
    if isinstance(first, LowRank) and isinstance(second, LowRank):
        return LowRank(torch.cat([first.up, second.up], 1), torch.cat([first.down, second.down], 0))
    if isinstance(first, Replaced) or isinstance(second, Replaced):
        if isinstance(first, Replaced) and isinstance(second, Replaced) and torch.equal(first.value, second.value):
            return first
        raise AdaptError(f"both deltas replace {name!r}; leave it out of one of them with `only`")
    one, two = first.difference(), second.difference()
    shape = one.shape if one.ndim >= two.ndim else two.shape  # a factorised kernel is flat
    return Dense(one.reshape(shape) + two.reshape(shape))


def _made(kind: str, parts: Mapping[str, Tensor], path: Path | str) -> Change:
    kinds = import_module("foveal.adapt.table").KINDS
    if kind not in kinds:
        raise AdaptError(f"{path}: holds a change of the kind {kind!r}, which this foveal does not know; update foveal")
    home, _, word = kinds[kind].partition(":")
    return getattr(import_module(home), word)(**parts)  # type: ignore[no-any-return]
