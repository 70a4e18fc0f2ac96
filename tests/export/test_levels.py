import numpy as np
import onnxruntime
import pytest
import torch

from foveal.export.levels import GRID, damaged, int8_psnr, write_levels
from foveal.export.onnx import ExportError
from foveal.images.degradation import examine
from foveal.models.restore.luma_clean import LumaClean

pytestmark = pytest.mark.dear("torch's export takes a second")

LEVELS = ((0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    network = LumaClean(2, channels=8, depth=1, expand=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("bundle")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 44, 3), dtype=np.uint8) for _ in range(2)]
    return network.eval(), folder, write_levels(network, folder, LEVELS, lambda row: pictures[: row + 1])


def run(data, x):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": x})[0]


@pytest.mark.parametrize("row", range(len(LEVELS)))
def test_a_file_with_a_levels_numbers_is_that_levels_network(exported, row):
    network, folder, table = exported
    x = torch.rand(1, 3, 30, 25, generator=torch.Generator().manual_seed(1))
    data = table.at(row, "float", (folder / "model.onnx").read_bytes())
    with torch.inference_mode():
        wanted = network.plain(LEVELS[row])(x).numpy()
        other = network.plain(LEVELS[row - 1])(x).numpy()
    np.testing.assert_allclose(run(data, x.numpy()), wanted, atol=1e-5)
    assert abs(wanted - other).max() > 1e-3


@pytest.mark.parametrize("row", range(len(LEVELS)))
def test_files_of_bytes_follow(exported, row):
    network, folder, table = exported
    x = np.random.default_rng(3).integers(0, 256, (1, 34, 29, 3), dtype=np.uint8)
    with torch.inference_mode():
        made = network.plain(LEVELS[row])(torch.from_numpy(x).permute(0, 3, 1, 2) / 255)
    blocks = torch.nn.functional.pixel_unshuffle(made, 2).unflatten(1, (3, 4)).permute(0, 3, 4, 2, 1).flatten(3)
    wanted = blocks.clamp(0, 1).mul(255).round().numpy()
    for kind, name, most in (("uint8", "model_u8.onnx", 1), ("int8", "model_int8.onnx", 8)):
        got = run(table.at(row, kind, (folder / name).read_bytes()), x)
        assert abs(got - wanted).max() <= most, kind


def test_flat_stays_flat_in_bytes_at_every_level(exported):
    network, folder, table = exported
    m = 2 * network.margin
    x = np.broadcast_to(np.array([200, 30, 90], np.uint8), (1, 5 + m, 4 + m, 3))
    for row in range(len(LEVELS)):
        got = run(table.at(row, "int8", (folder / "model_int8.onnx").read_bytes()), np.ascontiguousarray(x))
        np.testing.assert_array_equal(got, np.broadcast_to(np.tile([200, 30, 90], 4), got.shape))


def test_the_file_itself_holds_the_first_level(exported):
    _, folder, table = exported
    for kind, name in (("float", "model.onnx"), ("uint8", "model_u8.onnx"), ("int8", "model_int8.onnx")):
        data = (folder / name).read_bytes()
        assert table.at(0, kind, data) == data
        assert table.at(1, kind, data) != data


def test_levels_that_differ_in_their_kernels_are_refused(tmp_path):
    class Other(LumaClean):
        def plain(self, level=(0, 0, 0)):
            made = super().plain(level)
            made.base.weight.data += level[0]
            made.extra = torch.nn.Parameter(torch.full((1,), float(level[0])))
            return made

    with pytest.raises(ExportError, match=r"levels differ in extra, which is no constant of the exported file"):
        write_levels(Other(2, channels=8, depth=0), tmp_path, LEVELS[:2])


def test_a_network_without_an_8_bit_form_is_refused(tmp_path):
    class Smooth(torch.nn.Module):
        margin, scale = 1, 2

        def plain(self, level):
            return torch.nn.Conv2d(3, 3, 3)

    with pytest.raises(ExportError, match=r"must have an 8-bit form"):
        write_levels(Smooth(), tmp_path, LEVELS[:1])


def test_int8_is_compared_at_its_own_levels(exported):
    _, folder, table = exported
    pictures = [np.random.default_rng(5).integers(0, 256, (40, 44, 3), dtype=np.uint8)]
    asked = []

    def shown(row):
        asked.append(row)
        return pictures

    assert 40 < int8_psnr(folder, table, shown) < 90
    assert set(asked) == {0}  # of three levels, the first


@pytest.mark.parametrize("level", [(0.5, 0, 0), (0, 1, 1), (0, 0.9, 0)])
def test_pictures_of_a_level_are_read_as_that(level):
    y, x = np.mgrid[:160, :160] / 9
    clean = np.clip(128 + 90 * np.sin(x) * np.cos(y), 0, 255).astype(np.uint8)[..., None].repeat(3, 2)
    (made,) = damaged([clean], level)
    found = examine(made)
    assert abs(found.jpeg - level[0]) < 0.05
    assert abs(found.noise / 10 - level[1]) < 0.25 + level[0]
    assert bool(found.colour) == bool(level[2])


def test_pictures_are_spread_over_the_folder():
    pictures = [np.full((8, 8, 3), value, np.uint8) for value in range(20)]
    assert [int(one[0, 0, 0]) for one in damaged(pictures, (0, 0, 0), count=4)] == [0, 5, 10, 15]
    assert [int(one[0, 0, 0]) for one in damaged(pictures, (0, 0, 0), count=4, seed=7)] == [2, 7, 12, 17]


def test_the_grid_has_all_that_is_read():
    assert GRID[0] == (0, 0, 0)
    assert len(set(GRID)) == len(GRID) < 60
    assert all(colour in (0, noise) for _, noise, colour in GRID)
