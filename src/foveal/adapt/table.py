"""Names of changes and of methods: plain data, read when a name is met, so that a new line changes nothing else."""

from __future__ import annotations

from typing import Any

__all__ = ["KINDS", "METHODS"]

KINDS: dict[str, str] = {  # name of a change in files → "module:class"
    "dense": "foveal.adapt.delta:Dense",
    "kronecker": "foveal.adapt.kadaptation:Kronecker",
    "low-rank": "foveal.adapt.delta:LowRank",
    "packed-low-rank": "foveal.adapt.bi_adaptformer:PackedLowRank",
    "replaced": "foveal.adapt.delta:Replaced",
}

METHODS: dict[str, tuple[bool, str, dict[str, Any]]] = {  # name → needs labels, "module:function", arguments
    "head": (True, "foveal.adapt.methods:labelled", {"what": "head", "lr": 1e-2}),
    "norm": (True, "foveal.adapt.methods:labelled", {"what": "norm", "lr": 5e-3}),
    "bias": (True, "foveal.adapt.methods:labelled", {"what": "bias", "lr": 5e-3}),
    "lora": (True, "foveal.adapt.methods:labelled", {"what": "lora", "lr": 3e-3}),
    "orthogonal": (True, "foveal.adapt.orthogonal_adaptation:orthogonal_adaptation", {}),
    "kadaptation": (True, "foveal.adapt.kadaptation:kadaptation", {}),
    "one-bit": (True, "foveal.adapt.bi_adaptformer:bi_adaptformer", {}),
    "full": (True, "foveal.adapt.methods:labelled", {"what": "full", "lr": 1e-3}),
    "statistics": (False, "foveal.adapt.methods:statistics", {}),
    "rpl": (False, "foveal.adapt.self_learning_rpl:self_learning_rpl", {}),
}
