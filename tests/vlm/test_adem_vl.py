import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from foveal.vlm.adem_vl import AdemVL, Fused, fuse, looped, pooled
from foveal.vlm.method import VlmError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def llama(*, dim=16, depth=2):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=dim,
        intermediate_size=24,
        num_hidden_layers=depth,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def fusion(**words):
    torch.manual_seed(1)
    made = AdemVL(6, 16, **{"hidden": 5, "scales": (4, 2), "alpha": 0.5, "beta": 1.0} | words)
    nn.init.normal_(made.values)
    return made


def test_fuse_by_hand():
    x, keys = torch.tensor([[[2.0]]]), torch.tensor([[[1.0], [-1.0], [3.0]]])
    values = torch.tensor([[[10.0], [20.0], [40.0]]])
    s = F.silu(torch.tensor([1.0, -1.0, 3.0])) * F.silu(torch.tensor(2.0))
    assert float(fuse(x, keys, values, drop=0)) == pytest.approx(float(s @ torch.tensor([10.0, 20.0, 40.0])))
    # one of three is ignored: the lowest score, not the smallest one
    assert float(fuse(x, keys, values, drop=0.34)) == pytest.approx(float(s @ torch.tensor([10.0, 0.0, 40.0])))


@pytest.mark.parametrize("features", [1, 7, 63])
@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5])
def test_it_equals_the_loop_with_gradients(features, drop):
    found = []
    for function in (fuse, looped):
        given = [drawn(2, 5, n, seed=i).double().mT.requires_grad_() for i, n in enumerate((3, features, features))]
        out = function(*given, drop=drop)
        grads = torch.autograd.grad((out * drawn(2, 3, 5, seed=9)).sum(), given)
        found.append((out, *grads))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_without_dropping_the_products_can_be_taken_in_either_order():
    x, keys, values = drawn(2, 7, 5), drawn(2, 9, 5, seed=1), drawn(2, 9, 5, seed=2)
    state = F.silu(keys).transpose(1, 2) @ values
    torch.testing.assert_close(fuse(x, keys, values, drop=0), F.silu(x) @ state, atol=1e-5, rtol=1e-4)


def test_no_text_and_half_precision():
    assert fuse(drawn(2, 0, 5), drawn(2, 9, 5), drawn(2, 9, 5)).shape == (2, 0, 5)
    half = fuse(*(drawn(1, n, 5).bfloat16() for n in (2, 20, 20)))
    assert half.dtype == torch.bfloat16


def test_each_token_ignores_its_own_lowest_tenth():
    x, keys = drawn(1, 6, 8), drawn(1, 20, 8, seed=1)
    read = fuse(x, keys, torch.eye(20)[None])[0]
    assert ((read == 0).sum(1) == 2).all()
    assert len({tuple(row.nonzero().flatten().tolist()) for row in read}) > 1


def test_scales_are_averages_of_one_pass():
    patches = torch.arange(16.0).view(1, 16, 1)
    made = pooled(patches, (4, 2, 1))
    torch.testing.assert_close(made[:, :16], patches)
    assert made[0, 16:, 0].tolist() == [2.5, 4.5, 10.5, 12.5, 7.5]


def test_layers_of_llama_read_beside_their_feed_forward_part():
    model, learnt, patches = llama(), fusion(), drawn(3, 16, 6)
    ids = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0))
    keys, values = learnt(patches)
    found = []

    def compare(layer, args, kwargs, output):
        position = kwargs["position_embeddings"]
        attend = layer.self_attn(
            layer.input_layernorm(args[0]), position_embeddings=position, attention_mask=kwargs["attention_mask"]
        )[0]
        h = args[0] + attend
        x = layer.post_attention_layernorm(h)
        plain = layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x))
        found.append((output, h + plain + 0.5 * looped(x, keys, values)))

    for layer in model.model.layers:
        layer.register_forward_hook(compare, with_kwargs=True)
    with Fused(model, learnt) as fused, torch.no_grad():
        fused.show(patches)
        model(ids, use_cache=False)
    assert len(found) == 2
    for ours, theirs in found:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_nothing_is_added_and_all_can_be_undone():
    model, learnt = llama(), fusion()
    ids, before = torch.tensor([[1, 4, 5]]), list(model.state_dict())
    with torch.no_grad():
        plain = model(ids).logits
        fused = Fused(model, learnt)
        assert list(model.state_dict()) == before
        assert torch.equal(model(ids).logits, plain)
        fused.show(drawn(1, 16, 6))
        assert not torch.equal(model(ids).logits, plain)
        fused.show(None)
        assert torch.equal(model(ids).logits, plain)
        fused.show(drawn(1, 16, 6))
        assert fused.restore() is model
        assert torch.equal(model(ids).logits, plain)
    Fused(model, learnt).restore()


def test_decoding_with_a_cache_reads_what_the_whole_prompt_reads():
    model, learnt, patches = llama(), fusion(), drawn(2, 16, 6)
    embed = model.get_input_embeddings()
    ids = torch.tensor([[1, 4, 5], [1, 9, 2]])
    with Fused(model, learnt) as fused, torch.no_grad():
        fused.show(patches)
        prompt = learnt.insert(embed(ids), patches.mean(1))
        assert prompt.shape == (2, 4, 16)
        torch.testing.assert_close(prompt[:, [0, 2, 3]], embed(ids))
        said = model.generate(inputs_embeds=prompt, max_new_tokens=3, do_sample=False)
        whole = model(inputs_embeds=torch.cat((prompt, embed(said[:, :2])), 1)).logits
        assert torch.equal(whole[:, 3:].argmax(2), said)
        best = model.generate(inputs_embeds=prompt, max_new_tokens=2, num_beams=2, do_sample=False)
        assert best.shape == (2, 2)
        # beams of a row follow each other and see its picture
        plain = model(inputs_embeds=prompt, use_cache=False).logits
        beams = model(inputs_embeds=prompt.repeat_interleave(3, 0), use_cache=False).logits
        torch.testing.assert_close(beams, plain.repeat_interleave(3, 0), atol=1e-5, rtol=1e-4)


def test_everything_that_is_learnt_gets_a_gradient():
    model, learnt, patches = llama(), fusion(), drawn(2, 16, 6)
    with Fused(model.requires_grad_(False), learnt) as fused:
        fused.show(patches)
        prompt = learnt.insert(model.get_input_embeddings()(torch.ones(2, 3, dtype=torch.long)), patches.mean(1))
        model(inputs_embeds=prompt).logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in learnt.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_parameters_of_the_papers_model():
    with torch.device("meta"):
        learnt = AdemVL(1024, 4096)
    assert sum(p.numel() for p in learnt.parameters()) == 2 * (1024 * 128 + 128 + 128 * 4096 + 4096) + 2 * 320 * 4096


def test_errors():
    with pytest.raises(VlmError, match=r"drop must be in \[0, 1\), got 1; 0.1 ignores the lowest tenth"):
        fuse(drawn(1, 1, 2), drawn(1, 3, 2), drawn(1, 3, 2), drop=1)
    with pytest.raises(VlmError, match="side² of a square picture, got 17; leave the class token out"):
        pooled(drawn(1, 17, 2))
    with pytest.raises(VlmError, match="Linear has no layers with an mlp; take a decoder such as LlamaForCausalLM"):
        Fused(nn.Linear(2, 2), fusion())
    with pytest.raises(VlmError, match=r"the decoder is 8 wide, and features 16; build AdemVL\(dim=8\)"):
        Fused(llama(dim=8), fusion())
    model = llama()
    with Fused(model, fusion()) as fused:
        with pytest.raises(VlmError, match=r"LlamaForCausalLM is fused already; call restore\(\) on its handle first"):
            Fused(model, fusion())
        fused.show(drawn(2, 16, 6))
        with pytest.raises(VlmError, match="2 pictures are shown, and there are 3 rows; show one a row"):
            model(torch.ones(3, 2, dtype=torch.long))
