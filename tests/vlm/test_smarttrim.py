import pytest
import torch
from torch import nn

from foveal.vlm.method import VlmError
from foveal.vlm.smarttrim import CrossEncoder, HeadTrimmer, TokenTrimmer, _Attention, _hard, budget, loss, smart_trim


def encoder(seed=0, *, num_heads=3):
    torch.manual_seed(seed)
    return CrossEncoder(nn.Embedding(9, 12), nn.Linear(6, 12), dim=12, depth=3, num_heads=num_heads, num_classes=4)


def trimmed(seed=0, *, bias=0.0):
    made = smart_trim(encoder(seed), hidden=6, bias=bias)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.5 * parameter.shape[1] ** -0.5)
    return made.eval()


def given(batch=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(9, (batch, 4), generator=generator), torch.randn(batch, 13, 6, generator=generator)


@pytest.mark.parametrize("group", [2, 5])
@torch.no_grad()
def test_what_is_dropped_need_not_be_computed(group):
    model, asked = trimmed(), given()
    model.group = group  # two groups and a rest, sorted, or one
    ours, shares = model(asked), model.shares
    theirs = model.masked(asked, _hard)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shares, model.shares)
    assert 0.1 < shares[0].mean() < 0.9
    assert 0.1 < shares[1].mean() < 0.9
    assert shares[0].unique().numel() > 1  # each input keeps its own number
    # one by one, when no head is computed that does not count
    for row in range(5):
        alone = model(tuple(part[row : row + 1] for part in asked))
        torch.testing.assert_close(alone[0], theirs[row], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_masks_of_training_are_those_of_the_rest():
    model, asked = trimmed(), given()
    soft = model.masked(asked, lambda logits: _hard(logits).float())
    torch.testing.assert_close(soft, model.masked(asked, _hard), rtol=1e-2, atol=2e-3)


@torch.no_grad()
def test_with_everything_kept_it_is_the_encoder():
    model, asked = trimmed(bias=1e4), given()
    assert torch.equal(model(asked), model.full(asked))
    assert (model.shares[0] == 1).all()
    assert (model.shares[1] == 1).all()


@torch.no_grad()
def test_first_tokens_stay_when_all_others_go():
    model, asked = trimmed(bias=-1e4), given()
    assert model(asked).isfinite().all()
    torch.testing.assert_close(model.shares[0], torch.full((5,), 2 / 19))
    assert (model.shares[1] == 0).all()
    torch.testing.assert_close(model(tuple(part[:1] for part in asked))[0], model(asked)[0], rtol=1e-4, atol=1e-5)


def test_attention_is_that_of_a_loop_over_heads():
    torch.manual_seed(0)
    attention, x, others = _Attention(12, 3), torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    keys, heads = torch.rand(2, 7), torch.rand(2, 3)
    plain = attention.proj.bias.expand(2, 5, 12).clone()
    q, (k, v) = attention.q(x), attention.kv(others).chunk(2, 2)
    for head in range(3):
        at = slice(4 * head, 4 * head + 4)
        weights = (q[..., at] @ k[..., at].mT / 2).exp() * (keys[:, None] + 1e-6)
        out = weights / weights.sum(2, keepdim=True) @ v[..., at] * heads[:, head, None, None]
        plain = plain + out @ attention.proj.weight[:, at].T
    torch.testing.assert_close(attention(x, others, keys, heads), plain)


@pytest.mark.parametrize("rows", [[[1, 0, 1], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]]])
@torch.no_grad()
def test_heads_that_no_row_uses_are_left_out(rows, monkeypatch):
    torch.manual_seed(0)
    attention, x, others = _Attention(12, 3), torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    heads, seen = torch.tensor(rows, dtype=torch.bool), []
    attend = nn.functional.scaled_dot_product_attention

    def spied(q, *rest):
        seen.append(q.shape[1])
        return attend(q, *rest)

    expected = attention(x, others, None, heads.float())
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spied)
    torch.testing.assert_close(attention(x, others, None, heads), expected)
    used = int(heads.any(0).sum())
    assert seen == [used] * bool(used)


@torch.no_grad()
def test_groups_are_of_inputs_that_keep_about_as_many(monkeypatch):
    model, asked = trimmed(), given()
    model.group, short, counts = 2, model._short, []

    def spied(streams):
        both = torch.cat((streams[1][:, 0], streams[0][:, 0]), 1)
        counts.extend(_hard(model.tokens[0][1](streams[1], both)).sum(1).tolist())
        return short(streams)

    monkeypatch.setattr(model, "_short", spied)
    model(asked)
    assert len(counts) == 5
    assert counts == sorted(counts)
    assert len(set(counts)) > 1


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = trimmed().train()
    made = loss(model, given(), torch.tensor([0, 1, 2, 3, 0]), share=0.5)
    made.backward()
    lacking = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert lacking == []


def test_the_loss_is_the_sum_of_its_parts():
    model, asked, answers = trimmed().train(), given(), torch.tensor([0, 1, 2, 3, 0])
    found = []
    for weight, distil in ((0.0, 0.0), (3.0, 0.0), (0.0, 2.0)):
        torch.manual_seed(0)
        found.append(loss(model, asked, answers, share=0.3, weight=weight, distil=distil))
        shares = [float(part.mean().detach()) for part in model.shares]
    torch.manual_seed(0)
    trim, whole = model(asked), model.full(asked)
    plain = nn.functional.cross_entropy(trim, answers) + nn.functional.cross_entropy(whole, answers)
    torch.testing.assert_close(found[0], plain)
    torch.testing.assert_close(found[1] - found[0], torch.tensor(3 * sum((0.3 - share) ** 2 for share in shares)))
    p = whole.softmax(1)
    torch.testing.assert_close(found[2] - found[0], 2 * (p * (p.log() - trim.log_softmax(1))).sum(1).mean())


def test_budgets_fall_and_stay():
    assert [budget(done, 0.4) for done in (0, 0.25, 0.5, 0.9)] == pytest.approx([1, 0.7, 0.4, 0.4])
    assert budget(0.3, 0.4, ramp=0.3) == pytest.approx(0.4)


def test_trimmers_read_the_first_tokens_of_both_modalities():
    torch.manual_seed(0)
    x, both = torch.randn(2, 5, 12), torch.randn(2, 24, requires_grad=True)
    made = TokenTrimmer(12, hidden=6)(x, both)
    assert made.shape == (2, 5, 2)
    made[:, 3, 0].sum().backward()
    assert both.grad.abs().gt(0).all()
    assert HeadTrimmer(12, 3, hidden=6)(both).shape == (2, 6, 2)


def test_other_models_raise():
    with pytest.raises(
        VlmError, match=r"SmartTrim needs a CrossEncoder, .* got Linear; for models of transformers take"
    ):
        smart_trim(nn.Linear(2, 2))
