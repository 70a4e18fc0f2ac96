"""Taps: outputs of named modules, collected while a network runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from torch import Tensor, nn

__all__ = ["Taps"]


class Taps:
    """Outputs of modules by name, collected by forward hooks inside a `with` block.

    Args:
        model: network to observe.
        names: names of its modules, as in `named_modules()`.

    Raises:
        ValueError: a name that the network does not have.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> with Taps(net, ["0"]) as taps:
        ...     out = net(torch.ones(2, 3))
        >>> taps["0"].shape
        torch.Size([2, 4])
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        if unknown := [name for name in names if name not in modules]:
            known = ", ".join([name for name, _ in model.named_children()][:12])
            raise ValueError(
                f"{type(model).__name__} has no module {unknown[0]!r}; give names from named_modules(), such as {known}"
            )
        self._modules = {name: modules[name] for name in names}
        self._found: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        self._found.clear()
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keep(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG001 - torch's signature
            self._found[name] = output

        return hook

    def __getitem__(self, name: str) -> Tensor:
        """Last output of a module.

        Args:
            name: one of the names.

        Returns:
            Output as the module returned it, with its graph.

        Raises:
            KeyError: the module did not run.
        """
        if name not in self._found:
            raise KeyError(f"module {name!r} did not run; taps that ran: {', '.join(self._found) or 'none'}")
        return self._found[name]

    def values(self) -> tuple[Tensor, ...]:
        """All outputs, in the order of the names.

        Returns:
            Outputs.
        """
        return tuple(self[name] for name in self._modules)
