import dataclasses

import pytest
import torch

from foveal.evidence.leaderboard.board import BASELINE, Board, BoardError, Settings, build_seeded, entrants
from foveal.measure.quality import bicubic


def test_a_board_trains_every_seed_once_and_goes_on(board, settings, networks):
    assert board.left() == [("rlfn", 0), ("espcn", 0), ("rlfn", 1), ("espcn", 1)]
    board.runs = {"rlfn": {"0": {}, "1": {}}, "espcn": {"1": {}}}
    board.train()
    assert board.left() == []
    said = []
    again = Board(board.folder, settings, networks, said.append)
    assert again.runs == board.runs
    again.train()  # nothing is left
    assert said == []
    run = again.runs["espcn"]["0"]
    assert run["psnr"] > 5
    assert 0 < run["similarity"] < 1
    model = again.trained("espcn")
    assert not torch.equal(next(model.parameters()), next(build_seeded(2, networks["espcn"], 0).parameters()))
    with pytest.raises(BoardError, match="give the same settings to go on, or another folder"):
        Board(board.folder, dataclasses.replace(settings, minutes=3.0), networks)


def test_equal_pictures_are_alike(board):
    psnr, similarity = board.quality(bicubic(2))
    assert 20 < psnr < 60
    assert similarity < 1
    highs = iter([high for _, high in board.pictures()])
    assert board.quality(lambda _: next(highs))[1] == 1


@pytest.mark.dear("builds every network that has the word in its name")
def test_entrants_enlarge_by_the_scale():
    found = entrants(4, ["sesr_m3", "espcn"])
    assert set(found) == {BASELINE, "espcn", "sesr_m3"}
    with pytest.raises(BoardError, match="no network for ×4 is called 'vim_tiny'; `foveal models` lists all"):
        entrants(4, ["vim_tiny"])
    assert set(entrants(3, [BASELINE])) == {BASELINE}


def test_settings_that_cannot_be():
    with pytest.raises(BoardError, match="minutes must be above 0 and seeds at least 1, got 0 and 1"):
        Settings(4, 0, 1, {}, "")
