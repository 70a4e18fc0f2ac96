import math

import pytest
import torch

from foveal.models.sequence.adatape import AdaTapeEncoder, AdaTapeSequence, AdaTapeViT, TapeBlock, read_tape

TINY = {"steps": 4, "merge": 2, "dim": 8, "num_heads": 2}


def plain(query, bank, key_dim, steps, merge):
    """One input, one token at a time."""
    tape, ponder, mass, unread = [], 0.0, 0.0, list(range(len(bank)))
    while len(tape) < steps and mass < steps / merge - 1e-5:
        scores = [(query @ bank[i, :key_dim], i) for i in unread]
        best = sorted(scores, key=lambda pair: float(pair[0].detach()), reverse=True)[:merge]
        odds = [(score / math.sqrt(key_dim)).exp() for score, _ in best]
        weights = [value / sum(odds) for value in odds]
        token = sum(w * bank[i] for w, (_, i) in zip(weights, best, strict=True))
        for _, i in best:
            unread.remove(i)
        ponder = ponder + 1 - sum(w * w for w in weights)
        mass += max(float(w.detach()) for w in weights)
        query = (query + token[:key_dim]) / 2
        tape.append(token)
    return torch.stack(tape), ponder


def test_reading_equals_one_token_at_a_time_with_gradients():
    torch.manual_seed(1)
    query = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    # sharp for some inputs, blunt for others, so that they end at different steps
    bank = torch.randn(5, 11, 7, dtype=torch.float64) * torch.tensor([0.1, 0.5, 1.0, 3.0, 9.0])[:, None, None].double()
    bank.requires_grad_()
    read = read_tape(query, bank, key_dim=3, steps=5, merge=2)
    lengths = read.there.sum(1).tolist()
    assert len(set(lengths)) > 1
    found = [plain(query[i], bank[i], 3, 5, 2) for i in range(5)]
    for i, (tape, ponder) in enumerate(found):
        assert lengths[i] == len(tape)
        torch.testing.assert_close(read.tape[i, : len(tape)], tape)
        torch.testing.assert_close(read.ponder[i], ponder)
    ours = (read.tape * read.there[..., None]).square().sum() + read.ponder.sum()
    theirs = sum(tape.square().sum() + ponder for tape, ponder in found)
    for a, b in zip(*(torch.autograd.grad(loss, (query, bank)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_equal_tokens_take_all_steps_and_certain_ones_the_fewest():
    bank = torch.ones(1, 8, 4)
    assert read_tape(torch.ones(1, 2), bank, key_dim=2, steps=4, merge=2).there.sum() == 4
    scale = torch.tensor([[100.0 * 2**-i for i in range(8)]])[..., None]
    read = read_tape(torch.full((1, 2), 100.0), bank * scale, key_dim=2, steps=4, merge=2)
    assert read.there.tolist() == [[1.0, 1.0]]  # a mass of one each, and two are enough
    assert float(read.ponder) < 1e-3


def test_merging_one_token_reads_until_the_end():
    torch.manual_seed(0)
    read = read_tape(torch.randn(2, 2), torch.randn(2, 6, 4), key_dim=2, steps=3, merge=1)
    assert read.there.tolist() == [[1.0] * 3] * 2
    assert read.ponder.abs().max() < 1e-6


def test_no_token_is_read_twice():
    bank = torch.eye(6)[None]
    read = read_tape(torch.zeros(1, 3), bank, key_dim=3, steps=3, merge=2)
    torch.testing.assert_close((read.tape[0] > 0).sum(0), torch.ones(6, dtype=torch.int64))


def test_inputs_of_different_lengths_do_not_disturb_each_other():
    torch.manual_seed(0)
    model = AdaTapeSequence(8, 3, **TINY).eval()
    with torch.no_grad():
        model.bank.weight.mul_(5)
        x = torch.randn(6, 8, 3)
        out, read = model.read(x)
        assert len(set(read.there.sum(1).tolist())) > 1
        for i in range(6):
            torch.testing.assert_close(out[i : i + 1], model(x[i : i + 1]), rtol=0, atol=1e-5)


def test_the_tape_has_an_mlp_of_its_own():
    torch.manual_seed(0)
    block, x = TapeBlock(8, 2).eval(), torch.randn(1, 5, 8)
    with torch.no_grad():
        before = block(x, 3)
        block.tape_mlp.fc2.bias.add_(1)
        after = block(x, 3)
    assert torch.equal(before[:, :3], after[:, :3])
    assert (after - before)[:, 3:].min() > 0.9
    assert torch.equal(block(x), block(x, 5))


def test_tokens_that_are_not_there_are_not_attended_to():
    torch.manual_seed(0)
    block, x = TapeBlock(8, 2).eval(), torch.randn(1, 5, 8)
    there = torch.tensor([[1.0, 1, 1, 1, 0]])
    torch.testing.assert_close(block(x, 3, there)[:, :4], block(x[:, :4], 3))


def test_alike_symbols_differ_by_their_faint_positions_alone():
    torch.manual_seed(0)
    model, x = AdaTapeSequence(8, 3, positions=0.0, **TINY).eval(), torch.ones(1, 8, 3)
    assert model.read(x)[1].there.sum() == 4
    assert float(model.read(x)[1].ponder.detach()) == pytest.approx(4 * 0.5, abs=1e-6)
    assert model.pos_embed.abs().max() == 0
    other = AdaTapeSequence(8, 3, **TINY)
    assert 0.03 < float(other.pos_embed.std()) < 0.07
    assert not other.pos_embed.requires_grad


def test_every_parameter_learns_with_the_ponder_loss():
    model = AdaTapeViT(img_size=8, patch_size=4, bank_patch_size=2, depth=2, num_classes=3, **TINY).train()
    out, read = model.read(torch.rand(2, 3, 8, 8))
    (out.sum() + read.ponder.mean()).backward()
    assert {name for name, value in model.named_parameters() if value.grad is None} == set()


def test_wrong_settings_raise():
    with pytest.raises(ValueError, match="4 steps of 2 tokens need a bank of 8, got 7; take fewer steps"):
        read_tape(torch.zeros(1, 2), torch.zeros(1, 7, 4), key_dim=2, steps=4, merge=2)
    for after in (-1, 2):
        with pytest.raises(ValueError, match=f"after must be in 0…1 for 2 blocks, got {after}"):
            AdaTapeEncoder(8, 2, 2, key_dim=4, after=after)
    for words in ({"steps": 0}, {"merge": 0}):
        with pytest.raises(ValueError, match="steps and merge must be at least 1, got"):
            AdaTapeEncoder(8, 2, 2, key_dim=4, **words)
