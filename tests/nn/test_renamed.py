import pytest
import torch

from foveal.nn.renamed import renamed


def test_rules_apply_one_after_the_other_and_keep_tensors_and_order():
    weights = {"layers.0.op.w": torch.zeros(1), "layers.1.op.w": torch.ones(2), "head.w": torch.ones(3)}
    found = renamed(weights, [(r"^layers\.(\d+)", lambda m: f"stages.{int(m[1]) + 1}"), (r"\.op\.", ".mixer.")])
    assert list(found) == ["stages.1.mixer.w", "stages.2.mixer.w", "head.w"]
    assert all(ours is theirs for ours, theirs in zip(found.values(), weights.values(), strict=True))


def test_two_entries_of_one_name_are_refused():
    with pytest.raises(
        ValueError, match=r"two entries would be called 'a', the second is 'b'; give a state dict of one"
    ):
        renamed({"a": torch.zeros(1), "b": torch.zeros(1)}, [("b", "a")])
