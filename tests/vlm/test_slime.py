import pytest
import torch

from foveal.vlm.method import VlmError
from foveal.vlm.slime import STAGES, Slime, gates, prefill, select, similarity, stage_


def model(**words):
    torch.manual_seed(0)
    return Slime(8, 6, overview=9, queries=4, num_heads=2, **words)


def inputs(rows, columns, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, 9, 8), torch.randn(batch, rows * columns, 16, 8), torch.randn(batch, 3, 6)


def test_likeness_by_hand_and_padding_is_not_asked():
    tokens = torch.tensor([[[2.0, 0], [0, 3], [1, 1]]])
    words = torch.tensor([[[5.0, 0], [0, 1], [-7, 0]]])
    torch.testing.assert_close(similarity(tokens, words), torch.tensor([[0.0, 1, 0.5**0.5]]))
    real = torch.tensor([[True, True, False]])
    torch.testing.assert_close(similarity(tokens, words, real), torch.tensor([[1.0, 1, 2**0.5]]))


def test_fewest_tokens_that_carry_the_threshold():
    scores = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]]).log()
    assert select(scores, top_p=0.39).tolist() == [[False, True, False, False], [True, True, False, False]]
    assert select(scores, top_p=0.69).tolist() == [[False, True, True, False], [True, True, True, False]]
    assert select(scores, top_p=0.95, most=3).sum(1).tolist() == [3, 3]
    assert select(scores, top_p=1.0).all()
    # a cooler softmax needs fewer
    assert select(scores, top_p=0.69, temperature=0.2).tolist()[0] == [False, True, False, False]


def test_gates_start_even_and_noise_moves_them():
    x = torch.randn(2, 5, 8)
    zero = torch.zeros(8, 2)
    assert torch.equal(gates(x, zero, zero), torch.full((2, 5, 2), 0.5))
    noise = torch.tensor([1.0, -1.0]).expand(2, 5, 2)
    far = 2 * (torch.tensor(2.0).log() + 0.01)  # softplus(0) is log 2
    torch.testing.assert_close(gates(x, zero, zero, noise=noise)[..., 0], far.sigmoid().expand(2, 5))


def test_the_overview_is_a_mixture_of_two_adapters():
    net = model().eval()
    x, _, _ = inputs(1, 1)
    net.gate.data.normal_()
    share = (x @ net.gate).softmax(-1)
    plain = share[..., :1] * net.project(x) + share[..., 1:] * net.project(net.attend(x, (3, 3)))
    torch.testing.assert_close(net.overview(x), plain)
    net.gate.data.zero_()
    net.gate.data[:, 0] = 1000 * x[0, 0]  # all of this feature goes through the first
    torch.testing.assert_close(net.overview(x)[0, 0], net.project(x)[0, 0])


def test_local_tokens_stand_in_reading_order_over_the_picture():
    net = model().eval()
    _, parts, _ = inputs(2, 3)
    each = net.project(net.compress(parts[1, 4][None], (4, 4)))[0]  # second row, second column
    found = net.local(parts, (2, 3))[1].unflatten(0, (4, 6))  # 2 rows of 2 queries, 3 columns of 2
    torch.testing.assert_close(found[2:, 2:4].flatten(0, 1), each)


def test_tokens_are_the_chosen_ones_at_their_places():
    net = model(top_p=0.5, most=5).eval()
    overview, parts, words = inputs(2, 2)
    first, local = net.overview(overview), net.local(parts, (2, 2))
    found, mask = net.read(first, local, words), select(similarity(local, words), top_p=0.5, most=5)
    assert torch.equal(found.real.sum(1), 9 + 1 + mask.sum(1))
    for row in range(2):
        kept = mask[row].nonzero()[:, 0]
        assert found.places[row][found.real[row]].tolist() == [*range(10), *(kept + 10).tolist()]
        torch.testing.assert_close(
            found.embedded[row][found.real[row]], torch.cat((first[row], net.separator[None], local[row, kept]))
        )


def test_all_tokens_are_read_where_nothing_is_left_out():
    net = model(top_p=1.0).eval()
    overview, parts, words = inputs(1, 3)
    first, local = net.overview(overview), net.local(parts, (1, 3))
    found = net.read(first, local, words)
    assert found.real.all()
    torch.testing.assert_close(found.embedded[:, 10:], local)


def test_noise_in_training_only():
    net = model(top_p=0.5)
    overview, _, _ = inputs(2, 2)
    net.eval()
    assert torch.equal(net.overview(overview), net.overview(overview))
    net.train()
    assert not torch.equal(net.overview(overview), net.overview(overview))


TRAINED = {"projector": {"project"}, "attention": {"attend"}, "local": {"compress"}}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_trains_its_part_alone(stage):
    net, language = model(), torch.nn.Linear(6, 2)
    stage_(net, language, stage)
    overview, parts, words = inputs(2, 2)
    found = net.read(net.overview(overview), net.local(parts, (2, 2)), words)
    language(found.embedded).pow(2).sum().backward()
    moved = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    everything = {"project", "attend", "compress", "gate", "separator"}
    assert moved - {"spread"} == TRAINED.get(stage, everything)
    assert (language.weight.grad is not None) == (stage == "all")
    tokens = {"projector": 10, "attention": 10, "local": 1 + 16}
    assert stage == "all" or found.embedded.shape[1] == tokens[stage]


def test_prefill_by_hand():
    assert prefill(3, depth=2, dim=5, hidden=7) == 2 * (4 * 3 * 25 + 2 * 9 * 5 + 3 * 3 * 35)
    assert 3.3 < prefill(2880) / prefill(577 + 4 * 72) < 3.7


def test_errors():
    with pytest.raises(VlmError, match="overview and queries must be squares, got 8 and 4; 576 and 144 are"):
        Slime(8, 6, overview=8, queries=4)
    with pytest.raises(VlmError, match=r"top_p must be in \(0, 1\], temperature above 0 and most at least 1, got 0, "):
        select(torch.zeros(1, 2), top_p=0)
    with pytest.raises(VlmError, match=r"a grid of \(2, 2\) has 4 local patches, got 3; cut anew"):
        model().local(torch.zeros(1, 3, 16, 8), (2, 2))
    with pytest.raises(
        VlmError, match="stage must be one of projector, attention, local, all, got 'both'; they follow"
    ):
        stage_(model(), torch.nn.Linear(1, 1), "both")
