"""Replaces the scans that `foveal.ops.selective_scan` leaves in a traced graph by standard ONNX operators.

ONNX has a `Scan` operator, but one pass over L steps would be L small steps in the engine. Instead, the sequence is cut
into M chunks of T = 64 steps, all chunks step together, and L is free:

    T steps from zero, of all chunks       the state each chunk ends with
    M steps                                the state each chunk begins with
    T steps from there, of all chunks      the outputs
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["CHUNK", "lower_scans"]

CHUNK = 64  # T; a sequence of L takes 2·T + L/T steps


class _Nodes:
    """Nodes and constants under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.made: list[NodeProto] = []

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        name = f"{self.prefix}{len(self.made)}"
        self.made.append(helper.make_node(operator, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def numbers(self, *values: int) -> str:
        return self("Constant", value=numpy_helper.from_array(np.array(values, np.int64)))

    def scan(self, body: GraphProto, inputs: list[str], *, outputs: int, scanned: int) -> str:
        """Add a `Scan`; returns the name of its last output."""
        names = [f"{self.prefix}{len(self.made)}_{i}" for i in range(outputs)]
        self.made.append(
            helper.make_node("Scan", inputs, names, name=f"node_{names[0]}", body=body, num_scan_inputs=scanned)
        )
        return names[-1]


def _body(nodes: _Nodes, inputs: list[str], outputs: list[str]) -> GraphProto:
    taken, given = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names] for names in (inputs, outputs)
    )
    return helper.make_graph(nodes.made, f"{nodes.prefix}body", taken, given)


def _advance(prefix: str, rates: str, *, seen: bool) -> GraphProto:
    """One step of all chunks: h' = exp(step · rates) ∘ h + drive · in; with `seen` also y = out · h'."""
    node = _Nodes(prefix)
    state, step, drive, weight_in, weight_out = (f"{prefix}{n}" for n in ("h", "step", "drive", "in", "out"))
    decay = node("Exp", node("Mul", step, rates))
    after = node("Add", node("Mul", decay, state), node("Mul", drive, weight_in))
    if not seen:
        return _body(node, [state, step, drive, weight_in], [after])
    y = node("ReduceSum", node("Mul", after, weight_out), node.numbers(-1), keepdims=0)
    return _body(node, [state, step, drive, weight_in, weight_out], [after, y])


def _carry(prefix: str) -> GraphProto:
    """One chunk: outputs the state before it and passes on h' = left ∘ h + end."""
    node = _Nodes(prefix)
    state, left, end = (f"{prefix}{n}" for n in ("h", "left", "end"))
    after = node("Add", node("Mul", left, state), end)
    return _body(node, [state, left, end], [after, node("Identity", state)])


def _written_out(scan: NodeProto, prefix: str) -> list[NodeProto]:
    """Standard nodes that compute one of foveal's own nodes."""
    u, delta, rates, weights_in, weights_out = scan.input
    sizes = {a.name: helper.get_attribute_value(a) for a in scan.attribute}
    groups, dim, states = sizes["groups"], sizes["channels"], sizes["states"]
    inside = (groups, dim // groups)
    node = _Nodes(prefix)
    batch, length = node("Shape", u, start=0, end=1), node("Shape", u, start=2, end=3)
    # A step of 0 leaves the state unchanged.
    pad = node("Mod", node("Neg", length), node.numbers(CHUNK))

    def chunked(value: str, rank: int, rows: tuple[int, int], unsqueezed: int) -> str:
        """(B, …, L) to (T, B, M, rows…), with an axis of size 1 inserted."""
        pads = node("Concat", node.numbers(*[0] * (2 * rank - 1)), pad, axis=0)
        shape = node("Concat", batch, node.numbers(*rows, -1, CHUNK), axis=0)
        cut = node("Reshape", node("Pad", value, pads), shape)
        return node("Unsqueeze", node("Transpose", cut, perm=[4, 0, 3, 1, 2]), node.numbers(unsqueezed))

    x, steps = chunked(u, 3, inside, 5), chunked(delta, 3, inside, 5)
    ins, outs = (chunked(w, 4, (groups, states), 4) for w in (weights_in, weights_out))
    rates = node("Reshape", rates, node.numbers(*inside, states))
    drive = node("Mul", steps, x)
    one = node.numbers(*inside, states)
    zeros = node("ConstantOfShape", node("Concat", batch, node("Shape", x, start=2, end=3), one, axis=0))
    body = _advance(f"{prefix}a", rates, seen=False)
    ends = node.scan(body, [zeros, steps, drive, ins], outputs=1, scanned=3)
    left = node("Exp", node("Mul", node("ReduceSum", steps, node.numbers(0), keepdims=0), rates))
    by_chunk = [node("Transpose", value, perm=[1, 0, 2, 3, 4]) for value in (left, ends)]
    first = node("ConstantOfShape", node("Concat", batch, one, axis=0))
    begins = node.scan(_carry(f"{prefix}b"), [first, *by_chunk], outputs=2, scanned=2)
    start = node("Transpose", begins, perm=[1, 0, 2, 3, 4])
    body = _advance(f"{prefix}c", rates, seen=True)
    y = node.scan(body, [start, steps, drive, ins, outs], outputs=2, scanned=4)
    # (T, B, M, G, C/G) to (B, C, M·T) to (B, C, L)
    together = node("Concat", batch, node.numbers(dim, -1), axis=0)
    whole = node("Reshape", node("Transpose", y, perm=[1, 3, 4, 2, 0]), together)
    cut = helper.make_node("Slice", [whole, node.numbers(0), length, node.numbers(2)], list(scan.output))
    return [*node.made, cut]


def lower_scans(model: ModelProto) -> int:
    """Replace each of foveal's own nodes by standard operators, in place.

    Args:
        model: model exported by torch.

    Returns:
        Number of nodes replaced.
    """
    nodes: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        if node.domain == "foveal":
            nodes += _written_out(node, f"scan{count}_")
            count += 1
        else:
            nodes.append(node)
    if count:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        kept = [opset for opset in model.opset_import if opset.domain != "foveal"]
        del model.opset_import[:]
        model.opset_import.extend(kept)
    return count
