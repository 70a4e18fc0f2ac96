"""Selective scan over a feature map along routes, as in VMamba: the routes, and one function over several backends."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.ops.backends import Backend, ShapeError, asked, check_alike, check_shape, choose, reasons
from foveal.ops.scan2d.eager import selective_scan2d_eager
from foveal.ops.scan2d.native import selective_scan2d_native
from foveal.ops.scan2d.reference import selective_scan2d_reference
from foveal.ops.scan2d.routes import ORDERS, gather, routes, scatter
from foveal.ops.scan2d.triton import selective_scan2d_triton
from foveal.ops.selective_scan import no_native
from foveal.ops.triton import why_not as no_triton

__all__ = ["ORDERS", "explain", "gather", "routes", "scatter", "selective_scan2d"]

# All take u, delta, A (routes, dim, states), B, C, D and delta_bias (routes, dim), routes and delta_softplus, and
# return (batch, dim, length).
BACKENDS = (
    Backend("native", selective_scan2d_native, no_native),
    Backend("triton", selective_scan2d_triton, no_triton),
    Backend("eager", selective_scan2d_eager, lambda _: None),
    Backend("reference", selective_scan2d_reference, lambda _: None),
)


def _check_routes(along: Tensor, u: Tensor) -> None:
    if along.ndim != 2 or along.is_floating_point() or along.dtype == torch.bool:
        raise ShapeError(
            f"routes must be integers, (routes, places), got {tuple(along.shape)} of {along.dtype}; "
            "foveal.ops.scan2d.routes makes them"
        )
    if along.device != u.device:
        raise ValueError(f"routes must be on {u.device} like u, got {along.device}; move them there")
    # A compiled kernel would read out of bounds. On a GPU the check would synchronise, so only the CPU is checked.
    if type(along) is Tensor and along.device.type == "cpu" and along.numel() and not torch.compiler.is_compiling():
        least, most = (int(value) for value in along.aminmax())
        if least < -1 or most >= u.shape[2]:
            raise ValueError(
                f"routes must hold positions of 0…{u.shape[2] - 1}, or -1 for none, got {least}…{most}; "
                "make them for the height and width of this map"
            )


def selective_scan2d(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    routes: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Selective scans along each of K routes over a feature map, summed at each position.

    Inputs and output are in raster order; the routes are applied inside. Positions that a route does not visit get
    nothing from it, not even the skip. The state is float32 for all inputs but float64, which stays float64.

        delta = softplus(delta + delta_bias)
        out_p = Σ_k (selective scan of u with delta_k, A_k, B_k, C_k, D_k along route k, at position p)

    Args:
        u: input, (batch, dim, length).
        delta: step sizes, (batch, routes, dim, length).
        A: decay of each state, (routes·dim, states), real, negative for a stable recurrence.
        B: input weights, (batch, routes, states, length).
        C: output weights, (batch, routes, states, length).
        D: skip weights, (routes·dim,).
        routes: positions in the order each route visits them, (routes, places), none twice on one route, -1 for none.
        delta_bias: bias added to delta, (routes·dim,).
        delta_softplus: whether softplus is applied to delta.
        backend: "auto", or one of the names that `explain` lists.

    Returns:
        Output, (batch, dim, length), in the dtype of `u`.

    Raises:
        ShapeError: if the shapes do not match, or the routes are not integers.
        TypeError: if another tensor is integer or complex.
        ValueError: if the tensors are on several devices, the routes are for another map, or the backend is unknown.
        BackendError: if the backend cannot run here.

    Example:
        >>> import torch
        >>> from foveal.ops.scan2d import routes, selective_scan2d
        >>> u, weights = torch.ones(1, 1, 3), torch.ones(1, 2, 1, 3)
        >>> way = routes("raster", 1, 3)
        >>> selective_scan2d(u, weights, -torch.ones(2, 1), weights, weights, routes=way, delta_softplus=False)
        tensor([[[2.5032, 2.7358, 2.5032]]])
    """
    if u.ndim != 3:
        raise ShapeError(f"u must be (batch, channels, length), got {tuple(u.shape)}")
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    check_alike(named)
    _check_routes(routes, u)
    (batch, dim, length), count = u.shape, routes.shape[0]
    check_shape("delta", delta, (batch, count, dim, length), "one step for each route and value of u")
    if A.ndim != 2 or A.shape[0] != count * dim:
        raise ShapeError(
            f"A must be ({count * dim}, states), one row for each route and channel of u, got {tuple(A.shape)}"
        )
    for name, weights in (("B", B), ("C", C)):
        check_shape(name, weights, (batch, count, A.shape[1], length), "(batch, routes, states, length)")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            check_shape(name, vector, (count * dim,), "one value for each route and channel of u")
    rates = A.unflatten(0, (count, dim))
    skip, bias = (None if vector is None else vector.view(count, dim) for vector in (D, delta_bias))
    # As in `selective_scan`: on a CPU every call goes through the registered operator.
    registered = asked(BACKENDS, backend) == "auto" and u.device.type in {"cpu", "meta"}
    run = selective_scan2d_native if registered else choose(BACKENDS, backend, u).run
    return run(u, delta, rates, B, C, skip, routes, bias, delta_softplus)


def explain(u: Tensor | None = None) -> dict[str, str]:
    """Which paths can run, and why the others cannot.

    Args:
        u: input of the call; None stands for a float32 tensor on the CPU.

    Returns:
        Backend → "can run", or the reason and what to do.
    """
    return reasons(BACKENDS, torch.empty(1, 1, 1) if u is None else u)
