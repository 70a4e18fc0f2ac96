import pytest
import torch
from torch import nn

from foveal.vlm import tiny as toys
from foveal.vlm.dynamic_llava import DynamicLLaVA, Predictors, _added, rate_loss, sampled, temperature, unseen
from foveal.vlm.hooks import accelerate
from foveal.vlm.method import VlmError, make


def predictors(dim=32, *, even=0.0):
    """Random ones; `even` moves the words' threshold."""
    torch.manual_seed(1)
    made = Predictors(dim, hidden=16, num_heads=2).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 2 * parameter.shape[1] ** -0.5)
        made.text[-1].bias += torch.tensor([even, 0.0])
    return made


def method(**fields):
    return DynamicLLaVA(**{"keep": 0.4, "predictors": predictors(), "layer": 1, **fields})


@pytest.fixture
def dense(llava):
    """Logits of the untouched model whose layers from 1 on see tokens that are kept, and each token itself."""

    def run(inputs, kept):
        length = kept.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril() & kept[:, None] | torch.eye(length).bool()

        def hide(_, args, kwargs):
            mask = kwargs["attention_mask"]
            whole = seen[:, None] if mask is None else seen[:, None] & mask
            return args, {**kwargs, "attention_mask": whole}

        hooks = [
            layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in llava.model.language_model.layers[1:]
        ]
        try:
            with torch.no_grad():
                return llava(**inputs).logits
        finally:
            for hook in hooks:
                hook.remove()

    return run


def told(llava, inputs, words, **options):
    """Logits of words that are read one by one from a cache, (B, words, V), behind those of the prompt."""
    mask, held, found = inputs["attention_mask"], None, []
    with torch.no_grad():
        out = llava(**inputs, use_cache=True, **options)
        for word in words.T:
            held = out["cache"] if "cache" in out else out["past_key_values"]
            mask = torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
            name = "cache" if "cache" in out else "past_key_values"
            out = llava(input_ids=word[:, None], attention_mask=mask, **{name: held})
            found.append(out.logits)
    return torch.cat(found, 1), held


WORDS = torch.randint(7, 64, (3, 9), generator=torch.Generator().manual_seed(3))


def longer(inputs, words):
    ids = torch.cat((inputs["input_ids"], words), 1)
    mask = torch.cat((inputs["attention_mask"], torch.ones_like(words)), 1)
    return {**inputs, "input_ids": ids, "attention_mask": mask}


def test_a_cached_decode_is_a_dense_run_under_the_same_mask(llava, batch_of, dense):
    inputs = batch_of("llava")
    with accelerate(llava, method()) as fast:
        ours, held = told(llava, inputs, WORDS)
        stayed, places = fast.written, fast.places(1)
    assert stayed.shape == WORDS.shape
    assert 0 < stayed.sum() < stayed.numel()
    assert len(set(stayed.sum(1).tolist())) > 1  # rows of different lengths
    kept = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, columns in zip(kept, places, strict=True):
        row[columns[columns >= 0]] = True
    whole = torch.cat((kept, stayed), 1)
    theirs = dense(longer(inputs, WORDS), whole)[:, -WORDS.shape[1] :]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    # the caches hold what the fullest row kept; the last word is still there if any row kept it
    sizes = [layer.keys.shape[2] for layer in held.layers]
    assert sizes == [whole.shape[1], *[int(whole.sum(1).max())] * 2]


def test_words_that_are_recomputed_are_those_of_the_cache(llava, batch_of, row_of):
    inputs = row_of("llava", batch_of("llava"), 1)
    with accelerate(llava, method()) as fast:
        ours, _ = told(llava, inputs, WORDS[:1])
        stayed = fast.written
        fast.prompt = inputs["input_ids"].shape[1]
        for count in (1, 5, 9):
            with torch.no_grad():
                again = llava(**longer(inputs, WORDS[:1, :count]), use_cache=False).logits[:, -1]
            torch.testing.assert_close(again, ours[:, count - 1], rtol=0, atol=1e-4)
        # 13 of 32 visual tokens, the words that stayed, and the last one
        assert fast.route.tokens[1] == fast.prompt - 32 + 13 + int(stayed[:, :-1].sum()) + 1


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "paligemma"])
def test_generation_takes_batches_beams_and_static_caches(model_of, batch_of, row_of, written, family):
    model, inputs = model_of(family), batch_of(family)
    with accelerate(model, method()) as fast:
        together = written(model, inputs, count=6)
        for number in range(3):
            assert torch.equal(written(model, row_of(family, inputs, number), count=6)[0], together[number])
        fast.prompt = inputs["input_ids"].shape[1]
        assert torch.equal(written(model, inputs, count=6, use_cache=False), together)
        assert torch.equal(written(model, inputs, count=6, cache_implementation="static"), together)
        beams = written(model, inputs, count=5, num_beams=3)
        assert torch.equal(written(model, inputs, count=5, num_beams=3, use_cache=False), beams)


def test_at_its_limit_it_is_the_untouched_model(llava, batch_of, logits, written):
    inputs = batch_of("llava")
    before, said = logits(llava, inputs), written(llava, inputs, count=6)
    with accelerate(llava, method(keep=1.0, text=1.0)) as fast:
        assert torch.equal(logits(llava, inputs), before)
        assert torch.equal(written(llava, inputs, count=6), said)
        assert fast.written.shape == (0, 0)


def test_guessed_words_are_taken_back_unless_some_were_dropped(llava, batch_of, row_of, written):
    inputs = row_of("llava", batch_of("llava"), 1)
    with accelerate(llava, method(predictors=predictors(even=1e9))):
        assert torch.equal(written(llava, inputs, count=8, prompt_lookup_num_tokens=2), written(llava, inputs, count=8))
    with accelerate(llava, method(predictors=predictors(even=-1e9))) as fast:
        _, held = told(llava, inputs, WORDS[:1, :3])
        assert not fast.written.any()
        with pytest.raises(VlmError, match="the last 2 tokens cannot be taken back, as layers have dropped some of"):
            held.crop(-2)


def certain(inputs, kept):
    """Predictors of one row that draw `kept`."""
    made = predictors()

    class Given(nn.Module):
        def __init__(self, place):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(*place.shape, 2))
            with torch.no_grad():
                self.logits[..., 0] = torch.where(place, 40.0, -40.0)

        def forward(self, x, *_):
            return self.logits[:, : x.shape[1]]

    visual = inputs["input_ids"] == 5
    made.image = Given(kept[visual].view(len(kept), -1))
    made.text = nn.Sequential(Given(kept))
    return made


def test_training_reads_everything_under_the_mask_of_what_was_drawn(llava, row_of, batch_of, dense):
    inputs = longer(row_of("llava", batch_of("llava"), 1), WORDS[:1])
    labels = inputs["input_ids"].clone()
    labels[:, :-9] = -100
    kept = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    kept |= (inputs["input_ids"] != 5) & (labels == -100)
    theirs = dense(inputs, kept)
    made = certain(inputs, kept)
    llava.train()
    try:
        with accelerate(llava, method(predictors=made, shortest=5)) as fast:
            out = llava(**inputs, labels=labels, use_cache=False)
            visual = inputs["input_ids"] == 5
            shares = kept[visual].float().mean(), kept[:, -9:].float().mean()
            expected = 100 * ((0.4 - shares[0]) ** 2 + (0.5 - shares[1]) ** 2)
            torch.testing.assert_close(fast.penalty, expected)
            fast.method = method(predictors=made, shortest=10)
            llava(**inputs, labels=labels, use_cache=False)
            torch.testing.assert_close(fast.penalty, 100 * (0.4 - shares[0]) ** 2)
    finally:
        llava.eval()
    torch.testing.assert_close(out.logits, theirs, rtol=0, atol=1e-3)


def test_gradients_reach_every_parameter_of_the_predictors(llava, row_of, batch_of):
    inputs = longer(row_of("llava", batch_of("llava"), 1), WORDS[:1])
    made = predictors()
    llava.train()
    try:
        with accelerate(llava, method(predictors=made, shortest=1)) as fast:
            torch.manual_seed(0)
            loss = llava(**inputs, labels=inputs["input_ids"], use_cache=False).loss
            (loss + fast.penalty).backward()
    finally:
        llava.eval()
        llava.zero_grad()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


def test_an_added_mask_is_a_product_with_what_stays_with_its_gradients():
    torch.manual_seed(0)
    scores, value = torch.randn(2, 7, 7, dtype=torch.float64), torch.randn(2, 7, 3, dtype=torch.float64)
    found = []
    for added in (True, False):
        kept = (torch.rand(2, 7, generator=torch.Generator().manual_seed(5)) < 0.5).double().requires_grad_()
        if added:
            weights = (scores + unseen(kept, eps=1e-9)).softmax(2)
        else:
            own = torch.eye(7, dtype=torch.float64)
            weights = scores.exp() * (kept[:, None] * (1 - own) + own)
            weights = weights / weights.sum(2, keepdim=True)
        (weights @ value).square().sum().backward()
        found.append((weights.detach(), kept.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)
    assert (found[0][1][kept == 0] != 0).all()  # dropped tokens learn too


def test_draws_follow_the_logits_and_pass_gradients():
    torch.manual_seed(0)
    logits = torch.tensor([[[2.0, 0.0]]]).expand(4000, 1, 2).clone().requires_grad_()
    drawn = sampled(logits, 0.5)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn.detach().mean().item() == pytest.approx(1 / (1 + torch.e**-2), abs=0.02)
    drawn.sum().backward()
    assert (logits.grad[..., 0] > 0).float().mean() > 0.9
    assert [temperature(done) for done in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.1**0.5, 0.1])


def test_rates_are_those_of_rows_with_tokens():
    kept = torch.tensor([[1.0, 0, 1, 1], [1.0, 1, 1, 1]])
    among = torch.tensor([[True, True, True, False], [False] * 4])
    assert float(rate_loss(kept, among, 0.5)) == pytest.approx((0.5 - 2 / 3) ** 2)
    assert float(rate_loss(kept, ~among | among, 0.5)) == pytest.approx((0.25**2 + 0.5**2) / 2)


def test_image_predictors_leave_padding_out():
    made, x = predictors().image, torch.randn(2, 5, 32)
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    torch.testing.assert_close(made(x, real)[1, :3], made(x[1:, :3], real[1:, :3])[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made(x, real)[1, :3], made(x[1:], real[:1])[0, :3], atol=1e-3)


def test_the_best_tokens_stay(llava, batch_of, logits):
    inputs = batch_of("llava")
    with accelerate(llava, method(keep=0.25)) as fast:
        logits(llava, inputs)
        assert fast.route.visual == ((16, 32, 0), (4, 8, 0), (4, 8, 0))


def test_what_is_lacking_or_wrong_raises(llava):
    assert make("dynamic_llava", 0.3, text=0.4) == DynamicLLaVA(keep=0.3, text=0.4)
    with pytest.raises(
        VlmError, match=r"needs predictors that were trained .* got none; give predictors=Predictors\(32"
    ):
        accelerate(llava, "dynamic_llava")
    accelerate(llava).restore()
    with pytest.raises(VlmError, match=r"text must be in \(0, 1\], got 0; 0.5 drops half of the written words"):
        DynamicLLaVA(text=0)
    with pytest.raises(VlmError, match="layer must be at least 1, got 0; the predictors read"):
        DynamicLLaVA(layer=0)
    with pytest.raises(VlmError, match=r"trains with masks of four axes, .*; set sdpa"):
        _added(torch.ones(1, 2), torch.zeros(1, 1, 2, 2))


def test_quantised_caches_raise(llava, row_of, batch_of, cached):
    from transformers import DynamicCache

    inputs, cache = row_of("llava", batch_of("llava"), 0), DynamicCache(config=llava.config)
    with torch.no_grad(), accelerate(llava, method(predictors=predictors(even=-1e9))):
        llava(**inputs, **cached(llava, cache))
        cache.layers[1]._quantized_keys = None
        mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
        with pytest.raises(VlmError, match="a quantised cache cannot be shortened"):
            llava(input_ids=torch.tensor([[9]]), attention_mask=mask, **cached(llava, cache))


def test_models_of_any_kind_of_tokens_are_trained(model_of):
    inputs = toys.questions("llava", (0,))
    llava = model_of("llava").train()
    try:
        with accelerate(llava, method(shortest=1)) as fast:
            llava(**inputs, labels=inputs["input_ids"], use_cache=False)
            assert float(fast.penalty.detach()) >= 0
    finally:
        llava.eval()
