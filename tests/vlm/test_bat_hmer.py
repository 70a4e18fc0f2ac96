import numpy as np
import pytest
import torch

from foveal.evidence.tasks.formulas import SYMBOLS, formula
from foveal.vlm.bat_hmer import BatHmer, TreeDecoder, loss
from foveal.vlm.layout import RELATIONS, Layout, grow, mirror, steps
from foveal.vlm.method import VlmError

SIZES = {"hidden": 8, "embed": 6, "relation_embed": 4, "attention": 5, "reach": 3}
SUP, RIGHT = RELATIONS.index("sup"), RELATIONS.index("right")


def drawn(count, seed=0):
    draw = np.random.default_rng(seed)
    return [formula(draw) for _ in range(count)]


def row(*symbols, last=()):
    """A chain of "right"; `last` hangs on its last symbol."""
    tree = None
    for symbol in reversed(symbols):
        tree = Layout(symbol, tuple(last) if tree is None else ((RIGHT, tree),))
    return tree


def model(*, both=True, own=0.0):
    torch.manual_seed(0)
    ahead = TreeDecoder(len(SYMBOLS), 3, **SIZES, aided=both)
    back = TreeDecoder(len(SYMBOLS), 3, **SIZES) if both else None
    return BatHmer(torch.nn.Conv2d(1, 3, 3, padding=1), 3, ahead, back, own=own)


def ways(trees):
    return steps(trees), steps([mirror(tree) for tree in trees])


def test_flipped_by_hand():
    # a b^(d e) c  to  c b^(e d) a
    tree = Layout(0, ((RIGHT, Layout(1, ((SUP, row(3, 4)), (RIGHT, Layout(2))))),))
    flipped = Layout(2, ((RIGHT, Layout(1, ((SUP, row(4, 3)), (RIGHT, Layout(0))))),))
    assert mirror(tree) == flipped
    assert mirror(flipped) == tree


def test_flipping_keeps_what_hangs_where_and_turns_rows():
    for tree in drawn(50):
        given, flipped = ways([tree])
        assert sorted(given.symbols[0].tolist()) == sorted(flipped.symbols[0].tolist())
        assert torch.equal(given.branches[0, :, :RIGHT].sum(0), flipped.branches[0, :, :RIGHT].sum(0))
        assert mirror(mirror(tree)) == tree


def test_steps_by_hand_depth_first_and_back():
    tree = Layout(5, ((SUP, row(3, 4)), (RIGHT, Layout(2))))
    found = steps([tree, Layout(9)])
    assert found.symbols.tolist() == [[5, 3, 4, 2], [9, 0, 0, 0]]
    assert found.parents.tolist() == [[-1, 0, 1, 0], [-1, -1, -1, -1]]
    assert found.relations[0].tolist() == [len(RELATIONS), SUP, RIGHT, RIGHT]
    assert found.branches[0].nonzero().tolist() == [[0, SUP], [0, RIGHT], [1, RIGHT]]
    assert found.real.sum(1).tolist() == [4, 1]
    trees = drawn(20)
    assert grow(steps(trees)) == trees


def test_padding_and_company_change_nothing():
    net, trees = model().eval(), [*drawn(3), Layout(1)]
    pictures = torch.rand(4, 1, 5, 9)
    together = net(pictures, ways(trees))
    for b, tree in enumerate(trees):
        for each, alone in zip(together, net(pictures[b : b + 1], ways([tree])), strict=True):
            n = alone.symbols.shape[1]
            torch.testing.assert_close(each.symbols[b, :n], alone.symbols[0])
            torch.testing.assert_close(each.branches[b, :n], alone.branches[0])
            torch.testing.assert_close(each.language[b, :n], alone.language[0])


@pytest.mark.parametrize("both", [True, False])
def test_what_is_read_is_what_taking_its_steps_says(both):
    net, pictures = model(both=both).eval(), 3 * torch.randn(9, 1, 5, 9)
    with torch.no_grad():  # spread, and about one branch a symbol
        for weight in net.parameters():
            weight.mul_(2)
        for decoder, said in zip((net.ahead, net.back), net(pictures, ways(drawn(9))[: 1 + both]), strict=False):
            logits = said.branches[said.steps.real]
            decoder.have.bias.sub_(logits.mean(0) + 1.2 * logits.std(0))
    read = net.read(pictures, longest=12)
    assert any(way.branches.sum(2).max() > 1 for way in map(steps, read))
    assert all(way.real.sum(1).unique().numel() > 1 for way in map(steps, read))
    taken = net(pictures, [steps(way) for way in read])
    for way, said in zip(read, taken, strict=True):
        given = steps(way)
        assert torch.equal(said.symbols.argmax(2)[given.real], given.symbols[given.real])
        short = given.real.sum(1) < 12  # nothing was left out
        assert torch.equal(
            (said.branches > 0).float()[short][given.real[short]], given.branches[short][given.real[short]]
        )
    if both:
        assert not torch.equal(taken[0].symbols, taken[1].symbols)


def test_the_language_model_sees_no_picture_and_no_states():
    net, given = model().eval(), ways(drawn(2))
    a, b = (net(torch.rand(2, 1, 5, 9), given) for _ in range(2))
    start = torch.zeros(2, 8)
    for decoder, way, aid in ((net.back, given[1], (None, None)), (net.ahead, given[0], (a[1], b[1]))):
        first, second = (decoder(torch.rand(2, 3, 5, 9), start, way, x) for x in aid)
        assert torch.equal(first.language, second.language)
        assert not torch.equal(first.symbols, second.symbols)


def test_the_forward_decoder_is_helped_and_teaches_the_backward_one():
    net, given, pictures = model().eval(), ways(drawn(2)), torch.rand(2, 1, 5, 9)
    before = net(pictures, given)
    loss(before[:1], given[:1]).backward()
    assert net.back.look.weight_hh.grad.any()
    assert all(attention.weight.grad.any() for attention in net.ahead.aids)
    with torch.no_grad():
        net.back.look.weight_hh.add_(1)
    after = net(pictures, given)
    assert not torch.allclose(before[0].symbols, after[0].symbols)
    assert not torch.allclose(before[0].branches, after[0].branches)


def test_states_of_padding_are_not_attended():
    net, trees = model().eval(), [drawn(1)[0], Layout(1)]
    given, features, start = ways(trees), torch.rand(2, 3, 4, 4), torch.zeros(2, 8)
    aid = net.back(features, start, given[1])
    for states in aid.states:
        states.data[1, 1:] = 1e3
    changed = net.ahead(features, start, given[0], aid).symbols
    aid.states[0].data[1, 1:] = aid.states[1].data[1, 1:] = 0
    torch.testing.assert_close(changed[1, :1], net.ahead(features, start, given[0], aid).symbols[1, :1])


def test_own_symbols_are_looked_back_at():
    net, given, pictures = model(own=1.0), ways(drawn(3)), torch.rand(3, 1, 5, 9)
    for decoder in (net.ahead, net.back):
        decoder.dropout = 0.0
    said = net(pictures, given)
    net.eval()
    seen = []
    for way, told in zip(given, said, strict=True):
        seen.append(type(way)(told.symbols.argmax(2), way.parents, way.relations, way.branches, way.real))
    for one, other in zip(said, net(pictures, seen), strict=True):
        torch.testing.assert_close(one.symbols, other.symbols)
        torch.testing.assert_close(one.branches, other.branches)


def test_loss_by_hand():
    trees = [Layout(2), row(1, 0)]
    given = (steps(trees),)
    (said,) = model(both=False).eval()(torch.rand(2, 1, 5, 9), given)
    total = 0.0
    for b, tree in enumerate(trees):
        one = steps([tree])
        for t in range(len(one.symbols[0])):
            for logits, weight in ((said.symbols, 1.0), (said.language, 0.1)):
                total -= weight * logits[b, t].log_softmax(0)[one.symbols[0, t]] / len(one.symbols[0]) / 2
            right = one.branches[0, t] * 2 - 1
            total -= (said.branches[b, t] * right).sigmoid().log().sum() / len(one.symbols[0]) / 2
    torch.testing.assert_close(loss((said,), given), total)


def test_errors():
    with pytest.raises(
        VlmError, match=r"relations must ascend within 0 to 6, each once at most, got \[6, 5\]; sort them"
    ):
        Layout(0, ((RIGHT, Layout(1)), (SUP, Layout(2))))
    with pytest.raises(VlmError, match="embed must be even and reach odd, got 5 and 4; the paper's are 128 and 11"):
        TreeDecoder(3, 4, embed=5, reach=4)
    decoder = TreeDecoder(3, 4, **SIZES)
    with pytest.raises(
        VlmError, match="ahead must be aided if and only if there is a decoder back, got False; set aided"
    ):
        BatHmer(torch.nn.Identity(), 4, decoder, decoder)
    with pytest.raises(VlmError, match=r"own is a share in \[0, 1\], got 2; the paper's is 0"):
        BatHmer(torch.nn.Identity(), 4, decoder, own=2)
    with pytest.raises(VlmError, match="ways must be 2, got 1; the second is of flipped trees"):
        model()(torch.rand(1, 1, 5, 9), (steps([Layout(0)]),))
