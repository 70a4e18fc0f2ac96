"""Every family, by tiny models with random weights: keep = 1 changes nothing, and dropping is what masking would be."""

import pytest
import torch

from foveal.vlm import tiny as toys
from foveal.vlm.families import FAMILIES, find
from foveal.vlm.fastv import FastV
from foveal.vlm.feather import Feather
from foveal.vlm.hooks import accelerate
from foveal.vlm.random import Random

pytestmark = pytest.mark.dear("eleven families of models")
each = pytest.mark.parametrize("family", toys.FAMILIES)


def test_every_known_family_is_built():
    assert set(toys.FAMILIES) == set(FAMILIES)


@each
def test_keeping_all_changes_no_bit(family, model_of, batch_of, logits, written):
    model, inputs = model_of(family), batch_of(family)
    before, said = logits(model, inputs), written(model, inputs)
    for method in (FastV(1.0, layer=1), Feather(1.0, layers=(1, 2)), Random(1.0), Random(1.0, cache=True)):
        with accelerate(model, method):
            assert torch.equal(logits(model, inputs), before), method
    with accelerate(model, Feather(1.0, layers=(1, 2))):
        assert torch.equal(written(model, inputs), said)


@each
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_dropping_is_masking(family, layer, model_of, batch_of, logits, masked):
    model, inputs = model_of(family), batch_of(family)
    with accelerate(model, Random(0.4, layer=layer)) as fast:
        ours, places = logits(model, inputs), fast.places(layer)
    seen = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
    for row, at in enumerate(places):
        seen[row, at[at >= 0]] = True
    theirs = masked(model, find(model).layers, inputs, layer, seen)
    read = seen & inputs["attention_mask"].bool()
    assert 0 < int(read.sum()) < int(inputs["attention_mask"].sum())
    torch.testing.assert_close(ours[read], theirs[read], rtol=0, atol=2e-4)
    assert float(ours[~seen].abs().max()) == 0
    untouched = logits(model, inputs)
    assert float((untouched[:2, -1] - ours[:2, -1]).abs().max()) > 0.01
    torch.testing.assert_close(untouched[2, -1], ours[2, -1], rtol=0, atol=2e-4)  # it has no picture


@each
def test_tokens_go_and_places_stay_in_order(family, model_of, batch_of, logits):
    model, inputs = model_of(family), batch_of(family)
    visual = find(model).visual(inputs["input_ids"])
    total = visual.sum(1)
    for method in (FastV(0.4, layer=1), Random(0.4)):
        with accelerate(model, method) as fast:
            logits(model, inputs)
            route, places = fast.route, fast.places(2)
        left = [int(0.4 * n + 0.5) for n in total.tolist()]
        words = (inputs["attention_mask"].bool() & ~visual).sum(1)
        longest = int((words + torch.tensor(left)).max())
        before = 1 if isinstance(method, FastV) else 0
        assert route.tokens == (visual.shape[1],) * before + (longest,) * (3 - before)
        assert route.visual == (tuple(total.tolist()),) * before + (tuple(left),) * (3 - before)
        for row, at in enumerate(places):
            kept = at[at >= 0]
            assert (kept.diff() > 0).all()
            text = (inputs["attention_mask"][row].bool() & ~visual[row]).nonzero()[:, 0]
            assert set(text.tolist()) <= set(kept.tolist())
            assert int(visual[row, kept].sum()) == left[row]


@each
def test_a_padded_batch_reads_what_its_rows_read_alone(family, model_of, batch_of, row_of, logits, written):
    model, inputs = model_of(family), batch_of(family)
    for method in (FastV(0.4, layer=1), Feather(0.3, layers=(1, 2), stride=2)):
        with accelerate(model, method):
            together, said = logits(model, inputs)[:, -1], written(model, inputs, count=2)
            for number in range(3):
                row = row_of(family, inputs, number)
                torch.testing.assert_close(logits(model, row)[0, -1], together[number], rtol=0, atol=2e-4)
                assert torch.equal(written(model, row, count=2)[0], said[number])


@each
@pytest.mark.parametrize("method", [Random(0.4), Random(0.4, layer=1)], ids=["before", "inside"])
def test_writing_with_a_cache_is_writing_without(family, method, model_of, batch_of, written):
    model, inputs = model_of(family), batch_of(family)
    one = toys.questions(family, (1,), (4,))
    with accelerate(model, method):
        said = written(model, inputs)
        assert torch.equal(written(model, inputs, use_cache=False), said)
        assert torch.equal(written(model, inputs, cache_implementation="static"), said)
        if family != "fuyu":  # beams do not repeat the pictures of an untouched Fuyu
            beams = written(model, one, num_beams=3)
            assert torch.equal(written(model, one, num_beams=3, use_cache=False), beams)


@each
def test_restoring_leaves_nothing_behind(family, model_of, batch_of, logits):
    model, inputs = model_of(family), batch_of(family)
    parts, before = find(model), logits(model, inputs)

    def traces():
        hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
        return (
            len(hooks),
            "_deepstack_process" in parts.decoder.__dict__,
            parts.attentions[0].config is parts.decoder.config,
        )

    clean = traces()
    fast = accelerate(model, FastV(0.4, layer=1))
    assert fast.active
    assert traces() != clean
    assert not torch.equal(logits(model, inputs), before)
    assert fast.restore() is model
    assert traces() == clean
    assert not fast.active
    assert torch.equal(logits(model, inputs), before)
