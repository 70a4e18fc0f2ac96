"""A shrunk network on disk, without pickle: weights, and how its modules differ from those that a builder makes.

`model.safetensors` holds the weights. `config.json` names the builder (a timm, torchvision or foveal name and its
arguments) and lists every module whose class, plain attributes or shapes differ from the builder's: a pruned layer, two
layers in place of one, an identity in place of a batch norm. Nothing in either file is run.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.shrink.step import ShrinkError

__all__ = ["Origin", "build", "differences", "load", "origin_of", "save"]

_LIBRARIES = ("timm", "torchvision", "foveal")
_PACKAGES = ("torch.nn.", "timm.", "torchvision.", "foveal.")  # whose classes a config may name
_FORMAT = 1


@dataclass(frozen=True)
class Origin:
    """How a network is built before anything is changed.

    Args:
        library: "timm", "torchvision" or "foveal"; "" for a network of plain modules that needs no builder.
        name: name that the library's registry knows.
        arguments: keyword arguments.

    Raises:
        ShrinkError: another library.
    """

    library: str = ""
    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.library not in ("", *_LIBRARIES):
            raise ShrinkError(f"library must be one of {', '.join(_LIBRARIES)}, got {self.library!r}")


def build(origin: Origin) -> nn.Module:
    """Build the network that an origin names, without trained weights.

    Args:
        origin: library, name and arguments.

    Returns:
        The network in eval mode.

    Raises:
        ShrinkError: the library does not know the name, or not the arguments.
    """
    try:
        if origin.library == "foveal":
            from foveal.models import create_model

            return create_model(origin.name, **origin.arguments).eval()
        if origin.library == "timm":
            import timm

            return timm.create_model(origin.name, pretrained=False, **origin.arguments).eval()
        from torchvision.models import get_model

        return get_model(origin.name, weights=None, **origin.arguments).eval()
    except (ValueError, TypeError, RuntimeError) as error:
        raise ShrinkError(f"{origin.library} cannot build {origin.name!r} with {origin.arguments}: {error}") from error


def origin_of(model: nn.Module) -> Origin | None:
    """Guess how a network was built.

    Args:
        model: network as its library makes it.

    Returns:
        An origin whose network has the same modules and shapes; None if none is found. A network of torch's own
        modules needs none and gives an empty one.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    config = getattr(model, "pretrained_cfg", None) or {}
    names = [config.get("architecture")] if isinstance(config, dict) else []
    tries = []
    for name in filter(None, names):
        base = {"num_classes": getattr(model, "num_classes", 1000)}
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        tries += [Origin("timm", name, base | ({"img_size": list(size)} if size else {})), Origin("timm", name, base)]
    if type(model).__module__.startswith("torchvision.models."):
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
        tries += [
            Origin("torchvision", type(model).__name__.lower(), {"num_classes": m.out_features} if m else {})
            for m in last
        ]
    for origin in tries:
        try:
            built = build(origin)
        except ShrinkError:
            continue
        if {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()} == wanted:
            return origin
    try:
        _spec(model)
    except ShrinkError:
        return None
    return Origin()


def _plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_plain(item) for item in value)
    if is_dataclass(value) and type(value).__module__.startswith("foveal.shrink."):  # a step's settings
        return all(_plain(getattr(value, item.name)) for item in fields(value))
    return value is None or isinstance(value, bool | int | float | str)


def _encoded(value: Any) -> Any:
    """A plain value as JSON holds it."""
    if isinstance(value, tuple):
        return {"tuple": list(value)}
    if is_dataclass(value) and not isinstance(value, type):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"settings": kind, "fields": {i.name: _encoded(getattr(value, i.name)) for i in fields(value)}}
    return value


_OWN = {"training", *nn.Module().__dict__}


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes of a module besides torch's own."""
    return {key: value for key, value in module.__dict__.items() if key not in _OWN}


def _tensors(module: nn.Module) -> dict[str, Any]:
    """Shapes of a module's own parameters and buffers; None for one that is absent."""
    both: dict[str, Any] = {**module._parameters, **module._buffers}
    return {name: None if tensor is None else list(tensor.shape) for name, tensor in both.items()}


def _spec(module: nn.Module, name: str = "") -> dict[str, Any]:
    """A module as plain data, with all that is below it."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    attributes = _attributes(module)
    odd = [key for key, value in attributes.items() if not _plain(value)]
    if not kind.startswith(_PACKAGES) or odd:
        reason = f"its attribute {odd[0]!r} is no plain value" if odd else "its class is not one that is rebuilt"
        raise ShrinkError(f"{name or 'the model'} is a {kind}, which cannot be rebuilt without pickle: {reason}")
    return {
        "type": kind,
        "attributes": {key: _encoded(value) for key, value in attributes.items()},
        "parameters": {n: None if p is None else list(p.shape) for n, p in module._parameters.items()},
        "buffers": {
            n: None if b is None else [list(b.shape), str(b.dtype).removeprefix("torch.")]
            for n, b in module._buffers.items()
        },
        "children": {n: _spec(m, f"{name}.{n}".lstrip(".")) for n, m in module._modules.items() if m is not None},
    }


def _made(spec: dict[str, Any]) -> nn.Module:
    """The module of a `_spec`; its constructor is not called."""
    kind = spec["type"]
    if not kind.startswith(_PACKAGES):
        raise ShrinkError(f"config names the class {kind}, which is not one of {', '.join(_PACKAGES)}")
    home, _, word = kind.rpartition(".")
    found = getattr(import_module(home), word, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ShrinkError(f"config names {kind}, which is no module here; install the version that wrote it")
    module = found.__new__(found)
    nn.Module.__init__(module)
    for key, value in spec["attributes"].items():
        setattr(module, key, _value(value))
    for name, shape in spec["parameters"].items():
        module.register_parameter(name, None if shape is None else nn.Parameter(torch.zeros(shape)))
    for name, buffer in spec["buffers"].items():
        module.register_buffer(name, None if buffer is None else torch.zeros(buffer[0], dtype=_dtype(buffer[1])))
    for name, child in spec["children"].items():
        module.add_module(name, _made(child))
    return module.eval()


def _value(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"tuple"}:
        return tuple(value["tuple"])
    if isinstance(value, dict) and set(value) == {"settings", "fields"}:
        home, _, word = value["settings"].rpartition(".")
        found = getattr(import_module(home), word, None) if home.startswith("foveal.shrink.") else None
        if not is_dataclass(found):
            raise ShrinkError(f"config names {value['settings']}, which is no step of foveal.shrink")
        return found(**{key: _value(inner) for key, inner in value["fields"].items()})  # type: ignore[operator]
    return value


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ShrinkError(f"config names the type {name!r}, which torch does not have")
    return found


def differences(model: nn.Module, built: nn.Module) -> dict[str, dict[str, Any]]:
    """How a network differs from the one its builder makes.

    Args:
        model: network.
        built: network of the builder.

    Returns:
        By the module's name: "module", a whole new module; or "set", plain attributes, and "shapes", shapes of
        parameters and buffers.

    Raises:
        ShrinkError: a difference that cannot be written down.
    """
    found: dict[str, dict[str, Any]] = {}

    def compare(name: str, new: nn.Module, old: nn.Module | None) -> None:
        if old is None or type(new) is not type(old) or set(new._modules) != set(old._modules):
            found[name] = {"module": _spec(new, name)}
            return
        ours, theirs = _attributes(new), _attributes(old)
        changed = {k: v for k, v in ours.items() if _plain(v) and (k not in theirs or theirs[k] != v)}
        shapes = {k: v for k, v in _tensors(new).items() if _tensors(old).get(k, "absent") != v}
        if changed or shapes:
            values = {key: _encoded(value) for key, value in changed.items()}
            found[name] = {"set": values, "shapes": shapes}
        for child, module in new._modules.items():
            if module is not None:
                compare(f"{name}.{child}".lstrip("."), module, old._modules[child])

    compare("", model, built)
    return found


def _apply(model: nn.Module, changes: dict[str, dict[str, Any]]) -> nn.Module:
    for name, change in changes.items():
        if "module" in change:
            if not name:
                return _made(change["module"])
            parent, _, last = name.rpartition(".")
            model.get_submodule(parent)._modules[last] = _made(change["module"])
            continue
        module = model.get_submodule(name)
        for key, value in change["set"].items():
            setattr(module, key, _value(value))
        for key, shape in change["shapes"].items():
            store: Any = module._buffers if key in module._buffers else module._parameters
            old = store.get(key)
            dtype = old.dtype if old is not None else torch.float32
            made = torch.zeros(shape, dtype=dtype) if shape is not None else None
            store[key] = nn.Parameter(made) if made is not None and store is module._parameters else made
    return model


def save(model: nn.Module, folder: Path, origin: Origin | None) -> None:
    """Write a network so that `load` builds it again.

    Args:
        model: network.
        folder: folder to write; made if it is not there.
        origin: how it was built before anything was changed; None if that is not known.

    Raises:
        ShrinkError: a network that cannot be rebuilt; its weights are written all the same.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if seen.setdefault(id(tensor), name) == name:
            tensors[name] = tensor.detach().contiguous().clone()
    save_file(tensors, folder / "model.safetensors")
    config: dict[str, Any] = {"format": _FORMAT, "origin": None, "changes": None}
    try:
        if origin is None:
            raise ShrinkError(
                f"no builder is known for {type(model).__name__}, so the folder holds weights alone; "
                "give origin=Origin(library, name, arguments)"
            )
        built = build(origin) if origin.library else None
        changes = differences(model, built) if built is not None else {"": {"module": _spec(model)}}
        again = _apply(copy.deepcopy(built) if built is not None else nn.Identity(), changes)
        if {n: t.shape for n, t in again.state_dict().items()} != {n: t.shape for n, t in model.state_dict().items()}:
            raise ShrinkError(f"{type(model).__name__} has parts that its builder and the changes do not give")
        config |= {"origin": asdict(origin), "changes": changes}
    except ShrinkError as error:
        (folder / "config.json").write_text(json.dumps(config | {"reason": str(error)}, indent=1) + "\n", "utf-8")
        raise
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load(folder: Path | str) -> nn.Module:
    """Build a network that was saved, and load its weights.

    Args:
        folder: folder of `model.safetensors` and `config.json`, or the folder of a result that holds it as `torch`.

    Returns:
        The network in eval mode.

    Raises:
        ShrinkError: no such folder, or one that holds weights alone, or files that do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    folder = folder / "torch" if (folder / "torch" / "config.json").is_file() else folder
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        origin, changes = config["origin"], config["changes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShrinkError(f"{folder}: no network saved by foveal shrink here ({error})") from error
    if config.get("format") != _FORMAT:
        raise ShrinkError(f"{folder}: format {config.get('format')!r}, this foveal reads {_FORMAT}; update foveal")
    if origin is None:
        raise ShrinkError(f"{folder}: holds weights alone: {config.get('reason', 'the network cannot be rebuilt')}")
    try:
        made = Origin(**origin)
        model = _apply(build(made) if made.library else nn.Identity(), changes)
        tensors = load_file(folder / "model.safetensors")
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        tied = {
            n
            for n in missing
            if any(
                model.state_dict()[n].data_ptr() == model.state_dict()[o].data_ptr()
                for o in tensors
                if o in model.state_dict()
            )
        }
        if unexpected or set(missing) - tied:
            raise ShrinkError(f"weights and config differ in {(*unexpected, *missing)[0]!r}")
    except ShrinkError as error:
        raise ShrinkError(f"{folder}: {error}") from error
    except (OSError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ShrinkError(f"{folder}: damaged: {error}") from error
    return model.eval()
