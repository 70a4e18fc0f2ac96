import pytest
import torch

from foveal.vlm.stree import CHAIN, TREE, StateSpaceLM, _draft, greedy, longest_path, stree


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model = StateSpaceLM(11, dim=16, depth=2, num_heads=2, state=4).double()
    return model, StateSpaceLM(11, dim=8, depth=1, num_heads=2, state=4).double()


PROMPT = torch.tensor([3, 1, 4, 1, 5])


def test_a_sequence_is_a_tree_without_branches(pair):
    logits, _ = pair[0].read(PROMPT, pair[0].begin())
    torch.testing.assert_close(logits, pair[0](PROMPT[None])[0], rtol=0, atol=1e-12)


def test_a_sequence_can_be_read_in_pieces(pair):
    model = pair[0]
    whole, at_end = model.read(PROMPT, model.begin())
    _, states = model.read(PROMPT[:2], model.begin())
    logits, states = model.read(PROMPT[2:], states)
    torch.testing.assert_close(logits, whole[2:], rtol=0, atol=1e-12)
    for ours, theirs in zip(states, at_end, strict=True):
        torch.testing.assert_close(tuple(ours), tuple(theirs), rtol=0, atol=1e-12)


def test_a_path_of_a_tree_replays_to_the_state_of_its_tokens(pair):
    model = pair[0]
    tokens, parents, path = torch.tensor([2, 7, 1, 8, 2, 8]), torch.tensor([-1, 0, 0, 1, 2, 4]), torch.tensor([0, 2, 4])
    _, states = model.read(PROMPT, model.begin())
    _, reads = model.tree(tokens, states, parents)
    _, alone = model.read(torch.cat((PROMPT, tokens[path])), model.begin())
    for ours, theirs in zip(model.replay(states, reads, path), alone, strict=True):
        torch.testing.assert_close(tuple(ours), tuple(theirs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("branches", [TREE, CHAIN, ((3,), (1, 2))], ids=["tree", "chain", "other"])
def test_tokens_are_those_of_plain_decoding(pair, branches):
    found = stree(*pair, PROMPT, 20, branches=branches)
    assert torch.equal(found.tokens, greedy(pair[0], PROMPT, 20))
    assert found.checks == len(found.accepted)
    assert found.drafts == found.checks * (len(branches) + 1)
    assert sum(found.accepted) + found.checks >= 20 > sum(found.accepted[:-1]) + found.checks - 1


def test_a_draft_that_is_the_model_is_accepted_whole(pair):
    found = stree(pair[0], pair[0], PROMPT, 20)
    assert found.accepted == (4,) * 4
    assert stree(pair[0], pair[0], PROMPT, 20, branches=CHAIN).accepted == (4,) * 4


def test_the_drafted_tree_has_the_asked_shape_and_the_likeliest_tokens(pair):
    draft = pair[1]
    _, states = draft.read(PROMPT[:-1], draft.begin())
    tokens, parents = _draft(draft, states, PROMPT[-1:], TREE)
    assert parents.tolist() == [-1, 0, 0, 0, 0, 0, 1, 1, 2, 3, 6, 6, 7, 8, 10, 10, 11, 11]
    for node, children in ((0, [1, 2, 3, 4, 5]), (6, [10, 11]), (7, [12])):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, int(parents[path[0]]))
        logits = draft(torch.cat((PROMPT[:-1], tokens[path]))[None])[0, -1]
        assert tokens[children].tolist() == logits.topk(len(children)).indices.tolist()


def test_the_longest_path_stops_where_no_child_is_wanted():
    parents = torch.tensor([-1, 0, 0, 1, 2, 2, 5])
    tokens = torch.tensor([9, 1, 2, 3, 3, 4, 5])
    assert longest_path(tokens, parents, torch.tensor([2, 3, 4, 0, 0, 7, 0])) == [0, 2, 5]
    assert longest_path(tokens, parents, torch.tensor([2, 3, 4, 0, 0, 5, 0])) == [0, 2, 5, 6]
    assert longest_path(tokens, parents, torch.tensor([8, 3, 4, 0, 0, 5, 0])) == [0]


def test_nothing_to_generate_is_nothing(pair):
    assert len(stree(*pair, PROMPT, 0).tokens) == len(greedy(pair[0], PROMPT, 0)) == 0


def test_every_part_learns():
    torch.manual_seed(0)
    model = StateSpaceLM(7, dim=8, depth=1, num_heads=2, state=3)
    model(torch.tensor([[1, 2, 3, 4, 5]])).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p is not model.embed.weight)
    assert (model.embed.weight.grad.abs().sum(1) > 0).tolist() == [False, True, True, True, True, True, False]


def test_wrong_arguments_raise(pair):
    with pytest.raises(ValueError, match="the prompt must have at least 2 tokens, got 1; begin with a line end"):
        stree(*pair, PROMPT[:1], 3)
    with pytest.raises(
        ValueError, match=r"a level must name 1 to 2 numbers of children, each at least 1, got \(1, 1, 1\)"
    ):
        stree(*pair, PROMPT, 3, branches=((2,), (1, 1, 1)))
    with pytest.raises(ValueError, match=r"a level must name 1 to 1 numbers of children, each at least 1, got \(0,\)"):
        stree(*pair, PROMPT, 3, branches=((0,),))
