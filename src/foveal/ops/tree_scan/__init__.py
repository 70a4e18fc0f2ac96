"""The recurrence of Mamba-2 along all paths of a tree of tokens at once, and the convolution before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.ops.backends import Backend, ShapeError, check_alike, check_shape, choose, in_full_precision, reasons
from foveal.ops.tree_scan.eager import ancestors, tree_scan_eager
from foveal.ops.tree_scan.reference import tree_scan_reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ancestors", "explain", "tree_conv1d", "tree_scan"]

BACKENDS = (
    Backend("eager", tree_scan_eager, lambda _: None),
    Backend("reference", tree_scan_reference, lambda _: None),
)


def _check_parents(parents: Tensor, nodes: int) -> None:
    check_shape("parents", parents, (nodes,), "one parent for each node, -1 for none")
    places = torch.arange(nodes, device=parents.device)
    if not ((parents >= -1) & (parents < places)).all():
        raise ValueError(f"each parent must stand before its child, or be -1, got {parents.tolist()}; sort the nodes")


def tree_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    parents: Tensor,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`foveal.ops.ssd` where each token continues from its parent instead of from the token before it.

        dt = softplus(dt + dt_bias)
        S_t = exp(dt_t · A) S_parent(t) + dt_t · x_t B_tᵀ
        y_t = S_t C_t + D ∘ x_t

    Args:
        x: input, (batch, nodes, heads, channels).
        dt: step sizes, (batch, nodes, heads).
        A: decay of each head, (heads,), negative.
        B: input weights, (batch, nodes, groups, states); each group serves heads / groups adjacent heads.
        C: output weights, the same.
        D: skip weights, (heads,) or (heads, channels).
        parents: parent of each node, (nodes,) int64, each before its children; -1 for a root.
        dt_bias: bias added to dt, (heads,).
        dt_softplus: whether softplus is applied to dt.
        initial_state: S before the roots, (batch, heads, channels, states); None for zero.
        backend: "auto", "eager" or "reference".

    Returns:
        Output, (batch, nodes, heads, channels), in the dtype of `x`.

    Raises:
        ShapeError: if the shapes do not match.
        TypeError: if a tensor is integer or complex.
        ValueError: if a parent stands behind its child, the backend is unknown, or tensors are on several devices.

    Example:
        >>> import torch
        >>> from foveal.ops.tree_scan import tree_scan
        >>> one = torch.ones(1, 3, 1, 1)
        >>> tree_scan(one, one[..., 0], -torch.ones(1), one, one, parents=torch.tensor([-1, 0, 0])).flatten()
        tensor([1.0000, 1.3679, 1.3679])
    """
    if x.ndim != 4:
        raise ShapeError(f"x must be (batch, nodes, heads, channels), got {tuple(x.shape)}")
    check_alike({"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias, "initial_state": initial_state})
    batch, nodes, heads, channels = x.shape
    check_shape("dt", dt, (batch, nodes, heads), "one step for each node and head of x")
    check_shape("A", A, (heads,), "one decay for each head of x")
    if B.ndim != 4 or B.shape[:2] != x.shape[:2] or not B.shape[2] or heads % B.shape[2]:
        wanted = f"({batch}, {nodes}, groups, states) with groups that divide the {heads} heads"
        raise ShapeError(f"B must be {wanted}, got {tuple(B.shape)}")
    check_shape("C", C, tuple(B.shape), "like B")
    if D is not None:
        check_shape("D", D, (heads, channels)[: D.ndim], "one value for each head, or one for each channel")
    if dt_bias is not None:
        check_shape("dt_bias", dt_bias, (heads,), "one value for each head of x")
    if initial_state is not None:
        wanted_state = (batch, heads, channels, B.shape[3])
        check_shape("initial_state", initial_state, wanted_state, "(batch, heads, channels, states)")
    _check_parents(parents, nodes)
    chosen = choose(BACKENDS, backend, x)
    with in_full_precision(x):
        out: Tensor = chosen.run(x, dt, A, B, C, D, parents, dt_bias, dt_softplus, initial_state)
    return out


def tree_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, *, parents: Tensor, before: Tensor) -> Tensor:
    """Depthwise causal convolution along all paths of a tree: each node sees its nearest ancestors.

    Args:
        x: input, (batch, nodes, channels).
        weight: (channels, k), the last tap for the node itself.
        bias: (channels,), or None.
        parents: parent of each node, (nodes,) int64, each before its children; -1 for a root.
        before: the k - 1 inputs before the roots, (batch, k - 1, channels).

    Returns:
        (batch, nodes, channels).

    Raises:
        ShapeError: if the shapes do not match.
        ValueError: if a parent stands behind its child.
    """
    if x.ndim != 3:
        raise ShapeError(f"x must be (batch, nodes, channels), got {tuple(x.shape)}")
    batch, nodes, channels = x.shape
    if weight.ndim != 2 or len(weight) != channels:
        raise ShapeError(f"weight must be ({channels}, taps), one row for each channel, got {tuple(weight.shape)}")
    taps = weight.shape[1]
    check_shape("before", before, (batch, taps - 1, channels), "the inputs before the roots")
    _check_parents(parents, nodes)
    whole = torch.cat((before, x), 1)
    # places in `whole` that a node sees, oldest first
    seen: list[list[int]] = []
    for t, parent in enumerate(parents.tolist()):
        past = list(range(taps - 1)) if parent < 0 else seen[parent][1:]
        seen.append([*past, taps - 1 + t])
    # (batch, nodes, k, channels)
    windows = whole[:, torch.tensor(seen, dtype=torch.long, device=x.device).view(nodes, taps)]
    out = (windows * weight.T).sum(2)
    return out if bias is None else out + bias


def explain(x: Tensor | None = None) -> dict[str, str]:
    """Which paths of `tree_scan` can run, and why the others cannot.

    Args:
        x: input of the call; None stands for a float32 tensor on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(BACKENDS, torch.empty(1, 1, 1, 1) if x is None else x)
