import pytest
import torch
import torch.nn.functional as F

from foveal.vlm.hooks import accelerate
from foveal.vlm.method import VlmError, make
from foveal.vlm.mixed_bits import cache_bytes
from foveal.vlm.tiny import FAMILIES
from foveal.vlm.zipvl import ZipVL, important, received


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_attention_received_is_that_of_the_probes(groups):
    torch.manual_seed(0)
    queries, keys, probes = torch.randn(6, 9, 4), torch.randn(groups, 9, 4), torch.tensor([2, 7, 8])
    sees = torch.ones(9, 9, dtype=torch.bool).tril()[probes]
    total, mean = received(queries, keys, probes=probes, sees=sees, scaling=0.3)
    plain = torch.zeros(9)
    for head in range(6):
        for row in probes.tolist():
            weights = (keys[head * groups // 6, : row + 1] @ queries[head, row] * 0.3).softmax(0)
            plain[: row + 1] += weights / 6
    torch.testing.assert_close(total, plain)
    torch.testing.assert_close(mean, plain / torch.tensor([3.0, 3, 3, 2, 2, 2, 2, 2, 1]))


def test_as_many_tokens_as_carry_the_threshold():
    total, mean = torch.tensor([1.0, 5, 3, 1]), torch.tensor([4.0, 3, 2, 1])
    assert important(total, mean, 0.5).tolist() == [True, False, False, False]  # one of 5, chosen by the mean
    assert important(total, mean, 0.8).tolist() == [True, True, False, False]
    assert important(total, mean, 0.81).tolist() == [True, True, True, False]
    assert important(total, mean, 1.0).all()


def generated(model, inputs, **options):
    with torch.no_grad():
        return model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            suppress_tokens=[3, 4, 5, 6],
            return_dict_in_generate=True,
            **options,
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_at_its_limit_every_family_is_as_it_was(model_of, batch_of, logits, family):
    model, inputs = model_of(family), batch_of(family)
    plain = logits(model, inputs)
    with accelerate(model, "zipvl", 1.0):
        assert torch.equal(logits(model, inputs), plain)
    near = ZipVL(keep=1 - 1e-9, bits=(16, 16))
    real = inputs["attention_mask"].bool()
    with accelerate(model, near):
        torch.testing.assert_close(logits(model, inputs)[real], plain[real], rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model, inputs), plain)


@pytest.mark.parametrize("family", ["llava", "paligemma", "qwen2_5_vl"])
def test_rows_of_a_batch_are_answered_as_alone(model_of, batch_of, row_of, written, family):
    model, inputs = model_of(family), batch_of(family)
    with accelerate(model, ZipVL(keep=0.6, probes=100)) as fast:
        together = written(model, inputs)
        visual = fast.route.visual
        for number in range(2):
            alone = written(model, row_of(family, inputs, number))
            assert torch.equal(alone[0], together[number])
            assert [counts[0] for counts in fast.route.visual] == [counts[number] for counts in visual]
    assert 0 < visual[-1][1] < (inputs["input_ids"][1] == 5).sum()


def test_tokens_that_are_left_out_are_seen_by_nobody_and_see_nothing(llava, row_of, batch_of):
    """Plain attention with a mask, in one layer, and zeros for the others."""
    inputs = row_of("llava", batch_of("llava"), 1)
    attention, seen = llava.model.language_model.layers[0].self_attn, {}

    def watch(_, args, out):
        seen["out"] = args[0]

    hook = attention.o_proj.register_forward_hook(watch)
    try:
        with torch.no_grad(), accelerate(llava, ZipVL(keep=0.5, probes=5)) as fast:
            choose = fast.choose

            def watched(number, query, key, mask, scaling):
                chosen = choose(number, query, key, mask, scaling)
                if number == 0:
                    seen.update(query=query, key=key, mask=chosen[0])
                return chosen

            fast.choose = watched
            values = attention.v_proj.register_forward_hook(lambda _, __, out: seen.setdefault("value", out))
            llava(**inputs)
            values.remove()
    finally:
        hook.remove()
    kept = seen["mask"]
    value = seen["value"].unflatten(2, (2, 8)).transpose(1, 2)
    allowed = torch.ones(len(kept), len(kept), dtype=torch.bool).tril() & kept
    key, value = (x.repeat_interleave(2, 1) for x in (seen["key"], value))
    plain = F.scaled_dot_product_attention(seen["query"], key, value, allowed)
    plain = plain.nan_to_num() * kept[:, None]
    assert 0 < kept.sum() < len(kept)
    assert kept[-1]
    torch.testing.assert_close(seen["out"], plain.transpose(1, 2).flatten(2), rtol=1e-4, atol=1e-5)


def test_the_cache_takes_the_bytes_of_the_formula_and_grows_by_whole_tokens(llava, row_of, batch_of):
    inputs = row_of("llava", batch_of("llava"), 1)
    length = inputs["input_ids"].shape[1]
    with accelerate(llava, ZipVL(keep=0.6)) as fast:
        made = generated(llava, inputs)
        tokens = fast.route.tokens
    held = made["cache"] if "cache" in made else made["past_key_values"]
    recent = made.sequences.shape[1] - length - 1
    for layer, count in zip(held.layers, tokens, strict=True):
        stored = cache_bytes(count, length - count, heads=2, dim=8, bits=(4, 2), size=4)
        assert layer.nbytes == stored + 2 * recent * 2 * 8 * 4
        assert layer.get_seq_length() == length + recent
    assert fast.route.cached == (length,) * 3


def test_fewer_bits_answer_less_exactly(llava, batch_of):
    inputs, found = batch_of("llava"), {}
    for bits in (16, 8, 2):
        with accelerate(llava, ZipVL(keep=1 - 1e-9, bits=(bits, bits))):
            found[bits] = torch.stack(generated(llava, inputs, output_logits=True).logits[:2])
    plain = torch.stack(generated(llava, inputs, output_logits=True).logits[:2])
    wrong = {bits: float((logits - plain).abs().mean()) for bits, logits in found.items()}
    assert wrong[16] < 1e-4 < wrong[8] < wrong[2]


def test_beams_take_their_rows_along(llava, batch_of, written):
    inputs = batch_of("llava")
    with accelerate(llava, ZipVL(keep=1 - 1e-9, bits=(16, 16))):
        ours = written(llava, inputs, num_beams=3)
    assert torch.equal(ours, written(llava, inputs, num_beams=3))


def test_a_stored_prompt_cannot_be_cropped(llava, row_of, batch_of):
    inputs = row_of("llava", batch_of("llava"), 1)
    with accelerate(llava, ZipVL(keep=0.6)):
        made = generated(llava, inputs)
    layer = (made["cache"] if "cache" in made else made["past_key_values"]).layers[0]
    layer.crop(-1)
    with pytest.raises(VlmError, match="the prompt is stored in few bits and cannot be shortened: 9 tokens are to go"):
        layer.crop(-9)
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([1]))
    assert layer.whole(0).shape[0] == layer.keys.shape[0] == 1


def test_probes_are_the_last_tokens_and_random_ones():
    real = torch.ones(100, dtype=torch.bool)
    real[:10] = False
    probes = ZipVL(probes=8).probe(real)
    assert probes[-8:].tolist() == list(range(92, 100))
    assert len(probes) == len(probes.unique()) == 16
    assert 10 <= probes.min() < 92
    assert ZipVL(probes=200).probe(real).tolist() == list(range(10, 100))
    assert torch.equal(probes, ZipVL(probes=8).probe(real))


def test_wrong_fields_raise():
    assert make("zipvl", 0.5) == ZipVL(keep=0.5)
    with pytest.raises(
        VlmError, match=r"bits must be two of 1, 2, 4, 8 and 16, got \(4, 3\); the paper takes \(4, 2\)"
    ):
        ZipVL(bits=(4, 3))
    with pytest.raises(VlmError, match="probes must be at least 1, got 0; 64 are enough"):
        ZipVL(probes=0)
