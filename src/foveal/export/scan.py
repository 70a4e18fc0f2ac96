"""Standard `Scan` nodes for the loops that `foveal.ops.selective_scan` leaves in a traced graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto, helper

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["lower_scans"]


def _values(*names: str) -> list:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]


def _advance(prefix: str, rates: str) -> list[NodeProto]:
    """One step of the state: h' = exp(step · rates) ∘ h + drive · weight."""
    return [
        helper.make_node("Mul", [f"{prefix}step", rates], [f"{prefix}power"]),
        helper.make_node("Exp", [f"{prefix}power"], [f"{prefix}decay"]),
        helper.make_node("Mul", [f"{prefix}decay", f"{prefix}h"], [f"{prefix}kept"]),
        helper.make_node("Mul", [f"{prefix}drive", f"{prefix}in"], [f"{prefix}added"]),
        helper.make_node("Add", [f"{prefix}kept", f"{prefix}added"], [f"{prefix}next"]),
    ]


def _states(node: NodeProto, p: str) -> tuple[GraphProto, list[str], list[str], int]:
    start, step, drive, weight, rates = node.input
    names = [f"{p}{n}" for n in ("h", "step", "drive", "in")]
    body = helper.make_graph(_advance(p, rates), f"{p}body", _values(*names), _values(f"{p}next"))
    return body, [start, step, drive, weight], [node.output[0]], 3


def _carry(node: NodeProto, p: str) -> tuple[GraphProto, list[str], list[str], int]:
    nodes = [
        helper.make_node("Mul", [f"{p}left", f"{p}h"], [f"{p}kept"]),
        helper.make_node("Add", [f"{p}kept", f"{p}end"], [f"{p}next"]),
        helper.make_node("Identity", [f"{p}h"], [f"{p}before"]),
    ]
    names = [f"{p}{n}" for n in ("h", "left", "end")]
    body = helper.make_graph(nodes, f"{p}body", _values(*names), _values(f"{p}next", f"{p}before"))
    return body, list(node.input), [f"{p}unused", node.output[0]], 2


def _outputs(node: NodeProto, p: str) -> tuple[GraphProto, list[str], list[str], int]:
    start, step, drive, weight_in, weight_out, rates = node.input
    nodes = [
        *_advance(p, rates),
        helper.make_node("Constant", [], [f"{p}last"], value_ints=[-1]),
        helper.make_node("Mul", [f"{p}next", f"{p}out"], [f"{p}seen"]),
        helper.make_node("ReduceSum", [f"{p}seen", f"{p}last"], [f"{p}y"], keepdims=0),
    ]
    names = [f"{p}{n}" for n in ("h", "step", "drive", "in", "out")]
    body = helper.make_graph(nodes, f"{p}body", _values(*names), _values(f"{p}next", f"{p}y"))
    return body, [start, step, drive, weight_in, weight_out], [f"{p}unused", node.output[0]], 4


BODIES = {"ScanStates": _states, "ScanCarry": _carry, "ScanOutputs": _outputs}


def lower_scans(model: ModelProto) -> int:
    """Put a standard `Scan` in the place of each node of foveal's own, in place.

    Args:
        model: as torch exported it.

    Returns:
        How many were replaced.
    """
    nodes = []
    count = 0
    for node in model.graph.node:
        if node.domain != "foveal":
            nodes.append(node)
            continue
        body, inputs, outputs, scanned = BODIES[node.op_type](node, f"scan{count}_")
        nodes.append(helper.make_node("Scan", inputs, outputs, name=node.name, body=body, num_scan_inputs=scanned))
        count += 1
    if count:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        kept = [opset for opset in model.opset_import if opset.domain != "foveal"]
        del model.opset_import[:]
        model.opset_import.extend(kept)
    return count
