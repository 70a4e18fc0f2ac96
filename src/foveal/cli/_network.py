"""Trained networks and how pictures are framed for them, as commands take them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.cli._named import arguments_of, library_of

if TYPE_CHECKING:
    from torch import nn

    from foveal.runtime.classify import Framing
    from foveal.shrink.rebuild import Origin

__all__ = ["framing_of", "network_of"]


def framing_of(model: str, data: str, size: int | None) -> Framing:
    """Size and colours of a model's input: those of a result written here, of the set, or of timm's model.

    Args:
        model: name of the model, or a folder written by `foveal shrink`.
        data: folder of data or name of a set.
        size: side of the input; None for the model's own.

    Returns:
        The framing.
    """
    from foveal.runtime.bundle import Bundle
    from foveal.runtime.classify import Framing

    if (Path(model) / "card.json").is_file():
        return Framing.read(Bundle.load(Path(model)))
    mean, std, side, crop = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 1.0
    if data == "cifar10":
        mean, std, side = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 32
    else:
        import timm

        if timm.is_model(model):
            config: Any = timm.get_pretrained_cfg(model, allow_unregistered=True)
            if config is not None:
                mean, std = tuple(config.mean), tuple(config.std)
                side, crop = config.input_size[-1], float(config.crop_pct or 1.0)
    return Framing((size or side,) * 2, mean, std, crop if size in (None, side) else 1.0)


def network_of(name: str, weights: Path | None, arguments: list[str], counts: list[int]) -> tuple[nn.Module, Origin]:
    """A trained model and how it is built: from a folder, or by its name with its weights.

    Args:
        name: name of foveal, timm or torchvision, or a folder written by `foveal shrink`.
        weights: .safetensors file of a named model.
        arguments: NAME=VALUE texts.
        counts: numbers of classes to try, the first that fits the weights.

    Returns:
        The model in eval mode and its origin.

    Raises:
        ShrinkError: no weights, or weights that fit none of the models.
    """
    import json

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from foveal.shrink.rebuild import Origin, build, load
    from foveal.shrink.step import ShrinkError

    if Path(name).is_dir():
        folder = Path(name) / "torch" if (Path(name) / "torch").is_dir() else Path(name)
        network = load(folder)
        return network, Origin(**json.loads((folder / "config.json").read_text(encoding="utf-8"))["origin"])
    if weights is None:
        raise ShrinkError(
            f"{name} needs --weights FILE.safetensors: foveal fetches none, and an untrained model is none"
        )
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ShrinkError(f"{weights}: cannot be read as weights ({error}); give a .safetensors file") from error
    given = arguments_of(arguments)
    errors = []
    for count in counts:
        origin = Origin(library_of(name), name, {"num_classes": count} | given)
        try:
            network = build(origin)
            network.load_state_dict(tensors)
        except (ShrinkError, RuntimeError) as error:
            errors.append(" ".join(str(error).split())[:300])
            continue
        return network.eval(), origin
    raise ShrinkError(f"{weights} does not fit {name}: {errors[0]}")
