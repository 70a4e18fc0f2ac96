import dataclasses

import pytest
import torch

from foveal.evidence.leaderboard import standing
from foveal.evidence.leaderboard.board import BoardError, build_seeded
from foveal.evidence.leaderboard.page import crops, to_html, to_markdown, write_board
from foveal.evidence.leaderboard.standing import Entry, for_use, standings
from foveal.measure.cost import count_parameters
from foveal.models import create_model


@pytest.fixture
def in_turn(board, monkeypatch):
    """Networks that were never trained; times by the number of calls before: what comes later is slower."""
    monkeypatch.setattr(board, "trained", lambda name: build_seeded(2, board.networks[name], 0))
    monkeypatch.setattr(standing, "interleaved", lambda calls, **_: tuple([1.0 + i] * 3 for i, _ in enumerate(calls)))


def runs(psnr):
    return {str(seed): {"steps": 2, "psnr": psnr, "similarity": 0.9} for seed in range(2)}


def test_ranked_by_score_behind_the_gate(board, in_turn):
    board.runs = {"rlfn": runs(30.0), "espcn": runs(29.95)}
    first, second = standings(board, engines=("torch",))
    size = 48 * 64 / 1e6
    assert (first.name, second.name) == ("rlfn", "espcn")
    assert first.score == pytest.approx(2.718281828**2)
    assert second.score > first.score  # twice as slow, with more parameters
    assert first.seconds[1] == pytest.approx(1 / size)
    assert (first.engine, first.steps, first.psnr) == ("torch", 2, (30.0, 30.0))
    board.runs["espcn"] = runs(29.9)
    _, gated = standings(board, engines=("torch",))
    assert gated.gated
    assert gated.score is None


def test_a_network_is_counted_and_timed_as_it_runs():
    torch.manual_seed(0)
    model, x = create_model("sesr_m3", scale=2), torch.rand(1, 3, 9, 11)
    used = for_use(model)
    assert count_parameters(used) < 0.2 * count_parameters(model)
    torch.testing.assert_close(used(x), model(x), rtol=0, atol=1e-5)
    plain = torch.nn.Identity()
    assert for_use(plain) is plain


def test_bundles_stand_beside_them(board, in_turn, monkeypatch):
    board.runs = {"rlfn": runs(30.0)}
    board.networks = {"rlfn": board.networks["rlfn"]}
    monkeypatch.setattr(board, "quality", lambda upscale: (31.0, 0.95))
    lines = standings(board, engines=("torch",), shipped=("fast_x2",))
    assert [line.name for line in lines] == ["rlfn", "fast_x2"]
    assert (lines[1].engine, lines[1].psnr, lines[1].macs, lines[1].score) == ("as shipped", (31.0,), None, None)
    with pytest.raises(BoardError, match="fast_x4 enlarges by 4, the board is ×2; leave it out"):
        standings(board, engines=("torch",), shipped=("fast_x4",))


@pytest.mark.dear("exports a network and opens every engine")
def test_an_engine_that_no_network_runs_in(board):
    with pytest.raises(BoardError, match=r"rlfn runs in none of abacus; it has .*torch"):
        standings(board, engines=("abacus",))


def test_the_page_shows_all_of_it(board):
    board.train()
    lines = [
        Entry("rlfn", 100, 10**9, 2, (30.0, 30.2), (0.9, 0.9), "torch", (1.0, 1.1, 1.2), 7.389),
        Entry("espcn", 50, None, 2, (29.0,), (0.8,), "torch", (0.5, 0.6, 0.7), None, gated=True),
        Entry("fast_x2", 50, None, 0, (31.0,), (0.95,), "as shipped", (2.0, 2.1, 2.2)),
    ]
    text = to_markdown(board, lines, threads=2)
    assert "| rlfn | 7.39 | 30.10 (30.00–30.20) | 0.9000 | 1.1 | 1–1.2 | torch | 100 | 1.00 G | 2 |" in text
    assert "| espcn | gated | 29.00 |" in text
    assert "| fast_x2 | – |" in text
    assert text.splitlines()[-1].startswith("×2; 0.01 processor minutes and 2 seeds for each network; tested on drawn;")
    pieces = crops(board, lines)
    assert [name for name, _ in pieces] == ["original", "bicubic", "rlfn", "espcn"]
    assert {piece.shape for _, piece in pieces} == {(96, 96, 3)}
    page = to_html(board, lines, pieces, threads=2)
    assert page.count("<svg") == 2
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page
    written = write_board(board, [dataclasses.replace(lines[0], name="a<b"), *lines[1:]], threads=2)
    assert "a&lt;b" in written.read_text()
    assert sorted(path.name for path in written.parent.glob("leaderboard.*")) == [
        "leaderboard.html", "leaderboard.json", "leaderboard.md",
    ]  # fmt: skip
