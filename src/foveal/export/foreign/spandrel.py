"""Weights of the architectures that spandrel knows, `.pth` and `.safetensors`.

A `.pth` is a pickle, and unpickling one can run any program. Here only tensors and plain containers are ever unpickled
(`torch.load(weights_only=True)`); anything else in the file is refused before it is built.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from foveal.export.foreign.colours import Colours
from foveal.export.foreign.errors import ForeignModelError, require
from foveal.export.foreign.opened import Opened

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.export.foreign.sizes import Sizes
    from foveal.runtime.engines import FileKind

__all__ = ["open_weights", "read_weights"]


def read_weights(path: Path) -> dict[str, Any]:
    """The weights of a file, and nothing that is not weights.

    Args:
        path: path of the file.

    Returns:
        Tensors by name, perhaps inside other dicts.

    Raises:
        ForeignModelError: the file is damaged, or holds something that only unpickling it in full would build.
    """
    import pickle

    import torch

    if path.suffix.lower() == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ForeignModelError(f"{path}: is no file of weights ({error}); download it again") from error
    try:
        with warnings.catch_warnings():  # that it may not know a pickle's protocol
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        what = text.partition("Unsupported global: GLOBAL ")[2].partition(" ")[0] or text.partition("\n")[0][:160]
        raise ForeignModelError(
            f"{path}: holds more than weights ({what}), and building that could run any program; nothing of it was "
            "run. Ask for the weights as .safetensors"
        ) from error
    except Exception as error:
        raise ForeignModelError(
            f"{path}: is no file of weights ({str(error).partition(chr(10))[0][:160]}); download it again"
        ) from error
    if not isinstance(found, dict):
        raise ForeignModelError(f"{path}: holds {type(found).__name__}, wanted named weights; save the state_dict")
    return found


def open_weights(path: Path) -> Opened:
    """Read a file of weights.

    Args:
        path: path of the file.

    Returns:
        The model.

    Raises:
        ForeignModelError: the file is unsafe or damaged, its architecture is unknown, or it is not for RGB pictures.
    """
    require(path, "import", "torch", "spandrel", "safetensors")
    import torch
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError, canonicalize_state_dict

    from foveal.runtime.machine import cores

    weights = read_weights(path)
    try:
        # What torch says of an old network's code is for its maker.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            described = ModelLoader(device="cpu").load_from_state_dict(canonicalize_state_dict(weights))
    except UnsupportedModelError as error:
        names = ", ".join(list(weights)[:3])
        raise ForeignModelError(
            f"{path}: spandrel knows no architecture with these weights ({names}, …); it must be a network that "
            "enlarges or restores pictures; one of another framework can be imported as .onnx"
        ) from error
    except Exception as error:
        raise ForeignModelError(
            f"{path}: its weights do not fit the architecture they look like "
            f"({str(error).partition(chr(10))[0][:160]}); the file is damaged, or newer than the installed spandrel"
        ) from error
    family = described.architecture.name
    if not isinstance(described, ImageModelDescriptor):
        raise ForeignModelError(
            f"{path}: {family} wants a mask beside the picture; only models from picture to picture are imported"
        )
    if (described.input_channels, described.output_channels) != (3, 3):
        raise ForeignModelError(
            f"{path}: {family} with {described.input_channels} channels in and {described.output_channels} out; foveal "
            "runs models of RGB pictures (3); take one trained on colour"
        )
    if described.purpose == "FaceSR":
        raise ForeignModelError(
            f"{path}: {family} restores one cropped face of fixed size, not a picture of any size; foveal runs no such "
            "model"
        )
    wants = described.size_requirements
    network = _Called(described).eval()

    @torch.inference_mode()
    def run(x: NDArray) -> NDArray:
        before = torch.get_num_threads()
        torch.set_num_threads(cores())
        try:
            # A copy: some networks scale their input in place.
            return network(torch.tensor(x)).contiguous().numpy()
        finally:
            torch.set_num_threads(before)

    def write(folder: Path, colours: Colours, sizes: Sizes, exact: bool) -> dict[FileKind, str]:  # noqa: ARG001
        return _write(network, folder, sizes, exact, f"{path.name} ({family})")

    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Opened(
        family,
        run,
        write,
        "onnxruntime",
        parameters,
        multiple=wants.multiple_of,
        minimum=max(1, wants.minimum),
        colours=Colours(),  # spandrel's models all take and give RGB in [0, 1]
        scale=described.scale,
    )


def _Called(described: Any) -> Any:  # noqa: N802 - makes a module
    """A module that calls a model as spandrel does."""
    from torch import Tensor, nn

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = described.model
            self._call = described._call_fn  # its only record of how a model is called

        def forward(self, x: Tensor) -> Tensor:
            return self._call(self.model, x)

    return Called()


def _write(network: Any, folder: Path, sizes: Sizes, exact: bool, name: str) -> dict[FileKind, str]:
    import torch

    from foveal.export.onnx import ExportError, eight_bit, to_onnx

    side = sizes.up(32 + 2 * sizes.trims)
    example = torch.rand(2, 3, side, side + sizes.multiple)
    try:
        to_onnx(network, folder / "model.onnx", example)
    except ExportError as error:
        first = str(error.__cause__ or error).strip().partition("\n")[0][:200]
        raise ForeignModelError(
            f"{name}: torch cannot export it to ONNX with free height and width, and foveal runs nothing else ({first})"
        ) from error
    files: dict[FileKind, str] = {"float": "model.onnx"}
    if exact and sizes.multiple == 1 and eight_bit(folder / "model.onnx", folder / "model_u8.onnx"):
        files["uint8"] = "model_u8.onnx"
    return files
