"""The packed file of a quantised model: codes of few bits beside the other tensors, equal to the bit when read back.

A `.safetensors` file without pickle. The weight of each `QuantizedLayer` whose quantiser follows the protocol
`Quantizer` is stored as `NAME.codes`, ⌈n·bits/8⌉ bytes, and a few `NAME.constants.…`; all other tensors are stored as
they are. Reading fills a model of the same structure, whose weights then are the decoded ones.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.shrink.quantize.fake import QuantizedLayer, Quantizer, quantized_layers

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PackedError", "load_packed_", "pack", "packed_bytes", "save_packed", "unpack"]

FORMAT = "foveal packed 1"


class PackedError(FovealError, ValueError):
    """A packed file that does not fit the model, or is none."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack small integers, the lowest bit first.

    Args:
        codes: integers in [0, 2^bits), of any shape.
        bits: bits of a code, 1 to 16.

    Returns:
        ⌈n·bits/8⌉ bytes, uint8.

    Raises:
        ValueError: codes outside their range.
    """
    flat = codes.reshape(-1).to(torch.int64)
    if len(flat) and (int(flat.min()) < 0 or int(flat.max()) >= 2**bits):
        raise ValueError(f"codes must be in [0, {2**bits}) for {bits} bits, got {int(flat.min())} to {int(flat.max())}")
    single = (flat[:, None] >> torch.arange(bits)) & 1
    padded = torch.nn.functional.pad(single.reshape(-1), (0, -len(flat) * bits % 8)).view(-1, 8)
    return (padded << torch.arange(8)).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Unpack small integers.

    Args:
        packed: bytes made by `pack`, uint8.
        bits: bits of a code.
        shape: shape of the codes.

    Returns:
        Codes, int64.

    Raises:
        ValueError: a number of bytes that does not fit.
    """
    count = int(torch.tensor(shape).prod()) if shape else 1
    if len(packed) != -(-count * bits // 8):
        wanted = -(-count * bits // 8)
        raise ValueError(f"{count} codes of {bits} bits are {wanted} bytes, got {len(packed)}")
    single = ((packed.long()[:, None] >> torch.arange(8)) & 1).reshape(-1)[: count * bits].view(count, bits)
    return (single << torch.arange(bits)).sum(1).view(shape)


def packed_bytes(model: nn.Module) -> int:
    """Bytes of a model's tensors in the packed file, without the header.

    Args:
        model: network with quantised layers.

    Returns:
        Bytes.
    """
    return sum(x.numel() * x.element_size() for x in _stored(model)[0].values())


def _packable(model: nn.Module) -> dict[str, QuantizedLayer]:
    return {
        f"{name}." if name else "": layer
        for name, layer in quantized_layers(model)
        if isinstance(layer.weight_quantizer, Quantizer)
    }


def _bits(layer: QuantizedLayer) -> int:
    quantizer: Any = layer.weight_quantizer
    return int(quantizer.bits)


def _others(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that are stored as they are: all but the packed weights and what quantises them."""
    layers = {id(layer) for layer in _packable(model).values()}
    places = [name for name, module in model.named_modules(remove_duplicate=False) if id(module) in layers]
    parts = ("layer.weight", "weight_quantizer.")
    packed = tuple(f"{name}.{part}" if name else part for name in places for part in parts)
    return {k: v.detach() for k, v in model.state_dict().items() if not k.startswith(packed)}


def _stored(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, table = _others(model), {}
    for name, layer in _packable(model).items():
        quantizer: Any = layer.weight_quantizer
        codes, constants = quantizer.encode(layer.layer.weight.detach())
        tensors[f"{name}codes"] = pack(codes, quantizer.bits)
        tensors |= {f"{name}constants.{key}": value for key, value in constants.items()}
        table[name] = {"bits": quantizer.bits, "shape": list(codes.shape)}
    return tensors, table


def save_packed(model: nn.Module, path: Path) -> int:
    """Write a quantised model.

    Args:
        model: network with quantised layers.
        path: file to write.

    Returns:
        Bytes of the tensors in the file.
    """
    tensors, table = _stored(model)
    tensors = {k: v.contiguous().clone() for k, v in tensors.items()}  # a file cannot hold two names of one memory
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata={"format": FORMAT, "packed": json.dumps(table)})
    part.replace(path)
    return sum(x.numel() * x.element_size() for x in tensors.values())


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise PackedError(f"{path.name} cannot be read: {error}") from error
    if header.get("format") != FORMAT:
        raise PackedError(f"{path.name} is not a packed model of foveal; write one by save_packed")
    return tensors, json.loads(header["packed"])


def load_packed_(model: nn.Module, path: Path) -> nn.Module:
    """Fill a model from a packed file, for inference.

    Args:
        model: network of the same structure, quantised the same way.
        path: file that `save_packed` wrote.

    Returns:
        The same model in eval mode. Its layers hold the decoded weights, equal to the written model's quantised ones to
        the bit, and no weight quantisers.

    Raises:
        PackedError: another file, or one of another model.
    """
    tensors, table = _read(path)
    packable, others = _packable(model), _others(model)
    wanted = {name: [_bits(layer), list(layer.layer.weight.shape)] for name, layer in packable.items()}
    found = {name: [entry["bits"], entry["shape"]] for name, entry in table.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise PackedError(
                f"{path.name} belongs to another model: it holds {found.get(name)} (bits, shape) for "
                f"{name or 'the layer'}, the model wants {wanted.get(name)}"
            )
    rest = {k: v for k, v in tensors.items() if k in others}
    if missing := sorted(others.keys() - rest.keys()):
        raise PackedError(f"{path.name} belongs to another model: it lacks {missing[0]}")
    try:
        model.load_state_dict(rest, strict=False)
    except RuntimeError as error:
        raise PackedError(f"{path.name} belongs to another model: {error}") from error
    for name, layer in packable.items():
        quantizer: Any = layer.weight_quantizer
        start = f"{name}constants."
        constants = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        codes = unpack(tensors[f"{name}codes"], quantizer.bits, tuple(table[name]["shape"]))
        with torch.no_grad():
            layer.layer.weight.copy_(quantizer.decode(codes, constants))
        layer.weight_quantizer = None
    return model.eval()
