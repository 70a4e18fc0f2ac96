import pytest
import torch

from foveal.vlm.fastv import FastV, flops, last_attention
from foveal.vlm.hooks import accelerate
from foveal.vlm.method import Cut, VlmError


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 7, 33])
def test_scores_are_the_last_row_of_plain_attention(groups, length):
    torch.manual_seed(0)
    queries, keys = torch.randn(3, 6, length, 8), torch.randn(3, groups, length, 8)
    real = torch.ones(3, length, dtype=torch.bool)
    real[1, length // 2 + 1 :] = False  # padding behind
    real[2, : length // 2] = False  # and before
    last = torch.tensor([length - 1, length // 2, length - 1])
    found = last_attention(queries, keys, last=last, real=real, scaling=0.3)
    for row in range(3):
        plain = []
        for head in range(6):
            products = [
                float(queries[row, head, last[row]] @ keys[row, head * groups // 6, j]) * 0.3 for j in range(length)
            ]
            weights = torch.tensor([p if real[row, j] else -torch.inf for j, p in enumerate(products)]).softmax(0)
            plain.append(weights)
        torch.testing.assert_close(found[row], torch.stack(plain).mean(0), rtol=1e-4, atol=1e-6)


def test_scores_are_what_eager_attention_returns(llava, batch_of):
    """The weights of layer 0 of the untouched model, and the tokens that FastV keeps after it."""
    inputs = batch_of("llava")
    llava.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            weights = llava(**inputs, output_attentions=True).attentions[0][:, :, -1].mean(1)
    finally:
        llava.set_attn_implementation("sdpa")
    with torch.no_grad(), accelerate(llava, FastV(0.25, layer=1)) as fast:
        llava(**inputs)
        places = fast.places(1)
    for row, total in enumerate((16, 32)):
        visual = inputs["input_ids"][row] == 5
        best = weights[row].masked_fill(~visual, -1).topk(total // 4).indices
        kept = places[row][places[row] >= 0]
        assert set(kept[visual[kept]].tolist()) == set(best.tolist())


def test_operations_in_closed_form():
    assert flops(3, dim=2, hidden=5) == 4 * 3 * 4 + 2 * 9 * 2 + 2 * 3 * 2 * 5
    assert flops(3, dim=2, hidden=5, matrices=3) - flops(3, dim=2, hidden=5) == 30


def test_it_reads_the_layer_before():
    assert FastV(layer=2).cuts(32) == (Cut(2, scored=1),)
    assert FastV(layer=2, rotary=False).cuts(32) == (Cut(2, scored=1, rotated=False),)
    with pytest.raises(
        VlmError, match="layer must be at least 1, got 0; FastV reads the attention of the layer before"
    ):
        FastV(layer=0)
