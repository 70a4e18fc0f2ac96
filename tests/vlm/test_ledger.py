import pytest
import torch

from foveal.vlm.ledger import Ledger, Stage, assemble, take


def ledger(stages=2, **fields):
    return Ledger([Stage() for _ in range(stages)], **fields)


def test_rows_are_taken_of_each_sequence():
    x = torch.arange(12.0).view(2, 3, 2)
    rows = torch.tensor([[0, 2], [1, 1]])
    assert torch.equal(take(x, rows), torch.stack([x[0, [0, 2]], x[1, [1, 1]]]))


def test_rows_of_equal_numbers_need_no_filling():
    stays = torch.tensor([[True, False, True], [False, True, True]])
    rows, held = assemble(stays, torch.zeros_like(stays))
    assert rows.tolist() == [[0, 2], [1, 2]]
    assert held is None


def test_short_rows_are_filled_with_padding_first():
    stays = torch.tensor([[True, True, True, True, False], [False, False, False, True, True]])
    padding = torch.tensor([[False] * 5, [False, True, False, False, False]])
    rows, held = assemble(stays, padding)
    assert rows.tolist() == [[0, 1, 2, 3], [0, 1, 3, 4]]  # the padding, and a dropped token
    assert held.tolist() == [[True] * 4, [False, False, True, True]]


def test_masks_are_cut_in_prefill_and_decoding():
    whole = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    book = ledger()
    book.begin(4)
    book.cut(1, torch.tensor([[0, 2, 3]]), None)
    assert book.mask(1, None) is None  # still causal
    assert torch.equal(book.mask(1, whole)[0, 0], torch.ones(3, 3, dtype=torch.bool).tril())
    assert not book.stages[1].whole
    assert book.stages[0].whole
    book.end()
    assert book.stages[1].slots.tolist() == [[0, 2, 3]]
    book.begin(1)
    assert (book.past, book.seen, book.held_before(0), book.held_before(1)) == (4, 5, 4, 3)
    row = torch.tensor([[[[True, False, True, False, True]]]])
    assert book.mask(1, row).tolist() == [[[[True, True, False, True]]]]
    assert book.mask(1, row.float().log())[0, 0, 0].tolist() == [0, 0, float("-inf"), 0]


def test_filling_is_hidden_from_all():
    book = ledger()
    book.begin(3)
    book.cut(1, torch.tensor([[0, 1], [1, 2]]), torch.tensor([[False, True], [True, True]]))
    assert book.mask(1, None)[:, 0].tolist() == [[[False, False], [False, True]], [[True, False], [True, True]]]
    assert book.mask(1, torch.zeros(2, 1, 3, 3))[0, 0].max(0).values.tolist() == [torch.finfo().min, 0]
    assert book.mask(1, torch.ones(2, 3), flash=True).tolist() == [[0, 1], [1, 1]]
    assert book.mask(1, None, flash=True).tolist() == [[False, True], [True, True]]


def test_masks_of_a_static_cache_keep_their_width():
    book = ledger(width=6)
    book.begin(3)
    book.cut(1, torch.tensor([[0, 2]]), None)
    wide = torch.ones(1, 1, 3, 6, dtype=torch.bool).tril()
    assert book.mask(1, wide)[0, 0].tolist() == [[True] + [False] * 5, [True, True] + [False] * 4]
    book.cut(1, torch.tensor([[0, 2]]), torch.tensor([[True, False]]))
    assert book.mask(1, None).shape == (1, 1, 2, 6)


def test_a_mask_of_another_layer_is_cut_anew():
    book = ledger()
    book.begin(2)
    book.cut(1, torch.tensor([[1]]), None)
    one, two = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert book.mask(1, one) is book.mask(1, one)
    assert float(book.mask(1, two)) == 1


def test_rows_follow_a_beam_search():
    book = ledger()
    book.begin(3)
    book.cut(1, torch.tensor([[0, 1], [1, 2]]), torch.tensor([[False, True], [True, True]]))
    book.end()
    book.reorder(torch.tensor([1, 1, 0]))
    assert book.stages[1].slots.tolist() == [[1, 2], [1, 2], [0, 1]]
    assert book.stages[1].valid.tolist() == [[True, True], [True, True], [False, True]]


def test_last_tokens_are_forgotten():
    book = ledger()
    book.begin(3)
    book.cut(1, torch.tensor([[0, 2]]), None)
    book.end()
    book.begin(2)
    book.end()
    book.crop(1)
    assert (book.seen, book.past) == (4, 4)
    assert book.stages[1].slots.tolist() == [[0, 2, 3]]
    book.crop(0)
    assert book.seen == 4
    book.clear()
    assert book.seen == 0
    assert all(stage.whole for stage in book.stages)


@pytest.mark.dear("imports transformers")
def test_a_cache_looks_as_long_as_what_it_has_seen():
    from transformers import DynamicCache

    from foveal.vlm.ledger import follow, shorten_layer

    cache, owner = DynamicCache(), object()
    cache.update(torch.arange(5.0).view(1, 1, 5, 1), torch.zeros(1, 1, 5, 1), 0)
    book = follow(cache, 1, owner)
    assert follow(cache, 1, owner) is book
    assert isinstance(cache, DynamicCache)
    shorten_layer(cache.layers[0], torch.tensor([[1, 4]]))
    book.stages[0].slots = torch.tensor([[1, 4]])
    assert cache.layers[0].keys.flatten().tolist() == [1, 4]
    assert cache.get_seq_length() == 5
    assert cache.get_mask_sizes(2, 0) == (7, 0)
    cache.batch_repeat_interleave(2)
    assert book.stages[0].slots.tolist() == [[1, 4]] * 2
    cache.batch_select_indices(torch.tensor([0]))
    assert book.stages[0].slots.tolist() == [[1, 4]]
    cache.reorder_cache(torch.tensor([0, 0]))
    assert book.stages[0].slots.tolist() == [[1, 4]] * 2
    cache.crop(-1)
    assert (cache.get_seq_length(), book.stages[0].slots.tolist()) == (4, [[1]] * 2)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert follow(cache, 1, object()) is not book
