import pytest
import torch

from foveal.vlm.feather import Feather, even_sample, step_share
from foveal.vlm.hooks import accelerate
from foveal.vlm.method import Cut, VlmError, make


def mask(text):
    return torch.tensor([[letter == "x" for letter in row] for row in text.split()])


def test_shares_are_those_of_the_paper():
    share = 0.3 * (0.3 + 0.7 / 9)
    assert step_share(share, 3) == pytest.approx(0.3)
    assert step_share(1.0, 3) == pytest.approx(1.0)
    assert step_share(0.4, 1) == pytest.approx(0.4)


def test_a_square_picture_is_sampled_by_rows_and_columns():
    visual = mask("..xxxxxxxxxxxxxxxx.")
    found = even_sample(visual, 2)
    assert (found.nonzero()[:, 1] - 2).tolist() == [0, 2, 8, 10]
    assert even_sample(visual, 3).sum() == 4
    assert torch.equal(even_sample(visual, 1), visual)


def test_pictures_are_sampled_each_on_its_own():
    found = even_sample(mask("xxxx.xxxxx xxxxxxxxx. .........."), 2)
    assert found.nonzero().tolist() == [[0, 0], [0, 5], [0, 9], [1, 0], [1, 2], [1, 6], [1, 8]]


def test_the_width_of_a_grid_may_be_given():
    visual = mask("xxxxxxxxxxxx")
    assert even_sample(visual, 2, torch.full((1, 12), 6)).nonzero()[:, 1].tolist() == [0, 2, 4]
    assert even_sample(visual, 2, torch.full((1, 12), 4)).nonzero()[:, 1].tolist() == [0, 2, 8, 10]
    assert even_sample(visual, 2, torch.zeros(1, 12, dtype=torch.long)).nonzero()[:, 1].tolist() == [0, 4, 8]


def test_the_sample_knows_the_grids_of_qwen(model_of, batch_of, logits):
    """Two rows of three tokens: with stride 2 the corners of the first row."""
    widths = []

    class Reading(Feather):
        def choose(self, seen, cut):
            widths.append(seen.width)
            return super().choose(seen, cut)

    for family, columns in (("qwen2_vl", 3), ("llava", 0)):
        widths.clear()
        with accelerate(model_of(family), Reading(0.2, layers=(1, 2), stride=2)):
            inputs = batch_of(family)
            logits(model_of(family), inputs)
        visual = inputs["input_ids"] == 5
        assert (widths[0][visual] == columns).all()
        assert (widths[0][~visual] == 0).all()
        assert widths[1].shape[1] < widths[0].shape[1]


def test_scores_are_those_without_rotary_positions(llava, batch_of):
    """The product of the projections themselves, without positions, beside what the hooks read."""
    inputs = batch_of("llava")
    read = []

    class Reading(Feather):
        def choose(self, seen, cut):
            read.append(seen)
            return super().choose(seen, cut)

    attention = llava.model.language_model.layers[0].self_attn
    found = {}
    hooks = [
        getattr(attention, name).register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
        for name in ("q_proj", "k_proj")
    ]
    try:
        with torch.no_grad(), accelerate(llava, Reading(0.3, layers=(1, 2), stride=2)) as fast:
            llava(**inputs)
            visual = fast.route.visual
    finally:
        for hook in hooks:
            hook.remove()
    first, second = read
    assert torch.equal(first.queries, found["q_proj"].unflatten(2, (4, 8)).transpose(1, 2))
    assert torch.equal(first.keys, found["k_proj"].unflatten(2, (2, 8)).transpose(1, 2))
    assert second.queries.shape[2] == second.hidden.shape[1] < first.hidden.shape[1]
    assert [row[2] for row in zip(*visual, strict=True)] == [5, 10, 0]  # 0.3 of 16 and of 32
    assert (visual[0], visual[1][2]) == ((16, 32, 0), 0)


def test_layers_are_a_quarter_and_a_half_of_the_depth():
    assert Feather().cuts(32) == (Cut(8, 7, rotated=False), Cut(16, 15, rotated=False))
    assert [cut.layer for cut in Feather(layers=(3, 9)).cuts(12)] == [3, 9]
    assert [cut.layer for cut in make("feather", 0.5).cuts(3)] == [1, 2]


def test_wrong_fields_raise():
    with pytest.raises(VlmError, match="stride must be at least 1, got 0"):
        Feather(stride=0)
    for layers in ((0, 2), (3, 3)):
        with pytest.raises(VlmError, match=r"layers must be two ascending numbers from 1, got"):
            Feather(layers=layers)
    with pytest.raises(VlmError, match="FEATHER drops tokens twice and needs at least 3 layers, got 2; take fastv"):
        Feather().cuts(2)
