from dataclasses import dataclass

import pytest
import torch
from torch import nn

from foveal.vlm import tiny as toys
from foveal.vlm.families import Family, find
from foveal.vlm.fastv import FastV
from foveal.vlm.hooks import _cached, accelerate
from foveal.vlm.method import Cut, VlmError
from foveal.vlm.random import Random
from foveal.vlm.route import Route


@dataclass(frozen=True)
class Mine:
    """A method of one's own: every second visual token, at any cuts."""

    where: tuple = (Cut(1),)
    keep: float = 0.5

    def cuts(self, depth):
        return self.where

    def choose(self, seen, cut):
        return seen.visual & (seen.places % 2 == 0)


def test_a_route_says_what_each_layer_read():
    route = Route((20, 20, 8), ((12,), (12,), (3,)), (20, 20, 8))
    assert str(route) == "layers 0 to 1: 20 tokens, 12 visual; layer 2: 8 tokens, 3 visual"
    route = Route((1200, 1200), ((5, 9), (5, 9)), (1200, 700))
    assert str(route) == "layer 0: 1,200 tokens, 5 and 9 visual; layer 1: 1,200 tokens, 5 and 9 visual, 700 cached"
    assert str(Route()) == "nothing read yet"


def test_a_method_of_ones_own(llava, batch_of, logits):
    with accelerate(llava, Mine()) as fast:
        assert repr(fast).startswith("Accelerated(LlavaForConditionalGeneration, Mine(")
        logits(llava, batch_of("llava"))
        assert fast.places(0) is None
        assert fast.route.visual == ((16, 32, 0), (8, 16, 0), (8, 16, 0))


@pytest.mark.parametrize("static", [False, True])
def test_a_shortened_cache_is_a_mask_on_what_is_written(llava, row_of, batch_of, cached, static):
    from transformers import DynamicCache, StaticCache

    inputs = row_of("llava", batch_of("llava"), 1)
    length = inputs["input_ids"].shape[1]
    following = torch.tensor([[11]])
    longer = torch.ones(1, length + 1, dtype=torch.long)

    def fresh():
        return StaticCache(config=llava.config, max_cache_len=length + 3) if static else DynamicCache()

    with torch.no_grad():
        whole = fresh()
        before = llava(**inputs, **cached(llava, whole)).logits
        with accelerate(llava, Random(0.25, cache=True)) as fast:
            short = fresh()
            assert torch.equal(llava(**inputs, **cached(llava, short)).logits, before)
            places = fast.places(0)
            assert fast.route.cached == (places.shape[1],) * 3
            assert fast.route.tokens == (length,) * 3
            ours = llava(input_ids=following, attention_mask=longer, **cached(llava, short)).logits
        seen = torch.zeros(1, length + 1, dtype=torch.long)
        seen[0, places[0]] = seen[0, -1] = 1
        theirs = llava(
            input_ids=following, attention_mask=seen, position_ids=torch.tensor([[length]]), **cached(llava, whole)
        ).logits
    assert places.shape[1] == length - 32 + 8
    if not static:
        assert short.layers[2].keys.shape[2] == places.shape[1] + 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", [Random(0.4), Random(0.4, layer=1), Random(0.4, cache=True)], ids=repr)
def test_a_prompt_may_come_in_parts(llava, batch_of, row_of, cached, method):
    from transformers import DynamicCache

    inputs = row_of("llava", batch_of("llava"), 0)
    ids, end = inputs["input_ids"], inputs["input_ids"].shape[1]
    first = {**inputs, "input_ids": ids[:, : end - 3], "attention_mask": inputs["attention_mask"][:, : end - 3]}
    with torch.no_grad(), accelerate(llava, method):
        cache = DynamicCache()
        llava(**first, **cached(llava, cache))
        parts = llava(input_ids=ids[:, -3:], attention_mask=inputs["attention_mask"], **cached(llava, cache)).logits
        steps = DynamicCache()
        llava(**first, **cached(llava, steps))
        for place in range(end - 3, end):
            at = slice(place, place + 1)
            one = llava(
                input_ids=ids[:, at], attention_mask=inputs["attention_mask"][:, : place + 1], **cached(llava, steps)
            )
        torch.testing.assert_close(parts[:, -1], one.logits[:, -1], rtol=0, atol=1e-4)
        if not method.cache:
            whole = llava(**inputs).logits
            torch.testing.assert_close(parts, whole[:, -3:], rtol=0, atol=1e-4)


def test_a_later_part_may_bring_another_picture(llava, batch_of, row_of, cached):
    from transformers import DynamicCache

    inputs = row_of("llava", batch_of("llava"), 1)
    ids, pixels, real = inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]
    middle = 22  # even, so that every second token of the parts is every second of the whole; between the pictures
    assert (ids[:, :middle] == 5).sum() == (ids[:, middle:] == 5).sum() == 16
    with torch.no_grad(), accelerate(llava, Mine()) as fast:
        whole = llava(**inputs).logits
        held = cached(llava, DynamicCache())
        llava(input_ids=ids[:, :middle], pixel_values=pixels[:1], attention_mask=real[:, :middle], **held)
        part = llava(input_ids=ids[:, middle:], pixel_values=pixels[1:], attention_mask=real, **held).logits
        assert fast.route.visual == ((16,), (8,), (8,))
    torch.testing.assert_close(part[:, -1], whole[:, -1], rtol=0, atol=1e-4)


def test_guessed_tokens_are_taken_back(llava, batch_of, row_of, written):
    inputs = row_of("llava", batch_of("llava"), 1)
    with accelerate(llava, Random(0.4, layer=1)):
        assert torch.equal(written(llava, inputs, count=8, prompt_lookup_num_tokens=2), written(llava, inputs, count=8))


def test_eager_attention_reads_the_same(llava, batch_of, logits, written):
    inputs = batch_of("llava")
    with accelerate(llava, FastV(0.4, layer=1)):
        fused, said = logits(llava, inputs), written(llava, inputs)
        llava.set_attn_implementation("eager")
        try:
            torch.testing.assert_close(logits(llava, inputs), fused, rtol=0, atol=1e-4)
            assert torch.equal(written(llava, inputs), said)
        finally:
            llava.set_attn_implementation("sdpa")


def test_embeddings_may_be_given_in_place_of_ids(llava, batch_of, logits):
    inputs = dict(batch_of("llava"))
    with accelerate(llava, FastV(0.4, layer=1)) as fast:
        before = logits(llava, inputs)
        inputs["inputs_embeds"] = llava.get_input_embeddings()(inputs.pop("input_ids")).detach()
        assert torch.equal(logits(llava, inputs), before)
        assert fast.route.visual[1] == (6, 13, 0)


def test_masks_that_are_made_already_say_what_is_padding(llava, batch_of, logits):
    inputs = dict(batch_of("llava"))
    real = inputs["attention_mask"].bool()
    length = real.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    with accelerate(llava, FastV(0.4, layer=1)) as fast:
        before, places = logits(llava, inputs), fast.places(1)
        inputs["attention_mask"] = (causal & real[:, None])[:, None]
        torch.testing.assert_close(logits(llava, inputs), before, rtol=0, atol=1e-5)
        assert torch.equal(fast.places(1), places)


def test_losses_are_of_the_words(llava, batch_of):
    inputs = batch_of("llava")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] < 7, -100)
    with torch.no_grad(), accelerate(llava, Random(0.4, layer=1)):
        out = llava(**inputs, labels=labels)
    own = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(out.loss, own)


def test_words_alone_are_read_as_before(llava, logits, written):
    inputs = toys.questions("llava", (0,))
    before, said = logits(llava, inputs), written(llava, inputs)
    with accelerate(llava, FastV(0.25, layer=1)) as fast:
        assert torch.equal(logits(llava, inputs), before)
        assert torch.equal(written(llava, inputs), said)
        assert fast.route == Route()


def test_an_attention_that_fails_is_left_as_it_was(llava, batch_of, logits, monkeypatch):
    inputs, parts = batch_of("llava"), find(llava)
    attention = parts.attentions[0]
    with accelerate(llava, FastV(0.25, layer=1)):
        monkeypatch.setattr(attention.o_proj, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits(llava, inputs)
        assert attention.config is parts.decoder.config
        monkeypatch.undo()
        assert logits(llava, inputs).isfinite().all()


def test_the_cache_has_had_two_names():
    assert _cached({"cache": 1}) == _cached({"past_key_values": 1}) == 1


def test_a_model_is_accelerated_once(llava):
    with accelerate(llava, "fastv", 0.5), pytest.raises(VlmError, match="LlavaForConditionalGeneration is accelerated"):
        accelerate(llava)
    accelerate(llava).restore()


def test_a_cache_belongs_to_the_hooks_that_filled_it(llava, batch_of, logits, cached):
    from transformers import DynamicCache

    inputs, cache = batch_of("llava"), DynamicCache()
    with accelerate(llava, Random(0.4)):
        logits(llava, inputs, **cached(llava, cache))
    longer = {"input_ids": torch.full((3, 1), 9)}
    with accelerate(llava, Random(0.5)), pytest.raises(VlmError, match="the cache was filled under other hooks"):
        logits(llava, longer, **cached(llava, cache))


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ((Cut(3),), "drops tokens at layer 3, and the decoder has 3; name an earlier one"),
        ((Cut(2), Cut(1)), "cuts must come by ascending layer"),
        ((Cut(0), Cut(1, cache=True)), "a cut of the cache must be the only one"),
        ((Cut(1, scored=0), Cut(2, scored=0, rotated=False)), "layer 0 is read with and without rotary positions"),
    ],
)
def test_cuts_that_cannot_be_raise(llava, where, text):
    with pytest.raises(VlmError, match=text):
        accelerate(llava, Mine(where))
    assert not llava.model._forward_pre_hooks
    accelerate(llava, "fastv").restore()


def test_what_cannot_be_shortened_raises(llava, batch_of, logits, cached):
    from transformers import DynamicCache

    cache = DynamicCache(config=llava.config)
    cache.layers[1]._quantized_keys = None
    with accelerate(llava, Random(0.4, cache=True)), pytest.raises(VlmError, match="a quantised cache cannot be short"):
        logits(llava, batch_of("llava"), **cached(llava, cache))


def test_layers_that_run_twice_raise(llava, batch_of, logits):
    llava.gradient_checkpointing_enable()
    llava.train()
    try:
        with accelerate(llava, Random(0.4)), pytest.raises(VlmError, match="gradient checkpointing runs layers twice"):
            llava(**batch_of("llava"))
    finally:
        llava.gradient_checkpointing_disable()
        llava.eval()


def test_it_can_be_trained(llava, batch_of):
    with accelerate(llava, FastV(0.4, layer=1)):
        llava(**batch_of("llava")).logits[:, -1].sum().backward()
    lacking = {name for name, p in llava.model.language_model.named_parameters() if p.grad is None}
    llava.zero_grad()
    assert lacking == set()


def test_scores_from_before_an_earlier_cut_raise(llava, batch_of, logits):
    text = r"cut 1 of Mine\(.*reads layer 0, before tokens went at an earlier cut"
    with accelerate(llava, Mine((Cut(1), Cut(2, scored=0)))), pytest.raises(VlmError, match=text):
        logits(llava, batch_of("llava"))


def test_models_that_cannot_be_accelerated_raise(llava):
    import transformers

    with pytest.raises(VlmError, match="a Linear model cannot be accelerated: it lacks an image token in its config"):
        accelerate(nn.Linear(2, 2))
    small = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, num_attention_heads=1))
    with pytest.raises(VlmError, match="a 'llama' model cannot be accelerated: it lacks an image token in its config"):
        accelerate(text)
    text.config.image_token_id = 5
    with pytest.raises(
        VlmError, match=r"it lacks a line in foveal.vlm.families, or family=Family\(…\); known are fuyu"
    ):
        accelerate(text)
    with pytest.raises(
        VlmError, match=r"LlavaForConditionalGeneration has no model\.tower, where models of type 'llava'"
    ):
        accelerate(llava, family=Family(decoder="model.tower"))
    with pytest.raises(
        VlmError, match="the config of the 'llava' model has no film_token_id; visual tokens are unknown"
    ):
        accelerate(llava, family=Family(tokens=("film_token_id",)))


def test_windows_raise():
    model = toys.tiny("internvl", depth=1, layer_types=["sliding_attention"], use_sliding_window=True, sliding_window=8)
    with pytest.raises(VlmError, match="layers of the 'internvl' model attend within a window"):
        accelerate(model)
    model.model.language_model.config.layer_types = None
    with pytest.raises(VlmError, match="set sliding_window to None in its text_config"):
        accelerate(model)
