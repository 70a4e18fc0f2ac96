from functools import partial

import numpy as np
import pytest
from PIL import Image

from foveal.evidence.leaderboard import standing
from foveal.evidence.leaderboard.board import Board, Settings
from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.rivals.rlfn import RLFN
from foveal.models.restore.espcn import ESPCN


@pytest.fixture
def settings(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(2):
        coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((96, 96)).save(folder / f"{seed}.png")
    return Settings(2, 0.01, 2, {"drawn": str(folder)}, str(folder))


@pytest.fixture
def networks():
    return {"rlfn": partial(RLFN, dim=8, hidden=8, depth=1, inner=4), "espcn": partial(ESPCN, in_channels=3)}


@pytest.fixture
def board(tmp_path, settings, networks, monkeypatch):
    monkeypatch.setattr(standing, "RESULT", (48, 64))
    with rehearsal():
        yield Board(tmp_path / "board", settings, networks, say=lambda _: None)
