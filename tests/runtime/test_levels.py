import numpy as np
import pytest

from foveal.runtime.levels import Levels, LevelsError


def table():
    points = np.array([[0, 0, 0], [0.5, 0, 0], [0, 1, 1], [0, 1, 0]], np.float32)
    places = {"float": np.array([[2, 1], [10, 2]])}
    return Levels(points, places, {"float": np.arange(12, dtype=np.float32).reshape(4, 3)})


def test_numbers_are_put_where_they_belong():
    made = table().at(1, "float", bytes(20))
    assert np.frombuffer(made[2:6], "<f4") == 3
    assert np.frombuffer(made[10:18], "<f4").tolist() == [4, 5]
    assert made[:2] + made[6:10] + made[18:] == bytes(8)


def test_it_is_read_as_it_was_written(tmp_path):
    table().write(tmp_path / "levels.npz")
    again = Levels.read(tmp_path / "levels.npz")
    assert np.array_equal(again.points, table().points)
    assert again.at(2, "float", bytes(20)) == table().at(2, "float", bytes(20))


@pytest.mark.parametrize(
    ("level", "row"), [((0, 0, 0), 0), ((0.3, 0, 0), 1), ((3, 0, 0), 1), ((0, 0.9, 0.8), 2), ((0, 2, 0.1), 3)]
)
def test_the_nearest_level_is_taken(level, row):
    assert table().nearest(level) == row


@pytest.mark.parametrize("level", [(0, 0), (0, -1, 0), (float("nan"), 0, 0)])
def test_what_is_no_level_is_refused(level):
    with pytest.raises(LevelsError, match=r"a level must be three numbers of at least 0, got"):
        table().nearest(level)


def test_a_file_of_another_kind_or_length_is_refused():
    with pytest.raises(LevelsError, match=r"the table has levels of float, none of int8; export it anew"):
        table().at(0, "int8", bytes(20))
    with pytest.raises(LevelsError, match=r"the float file has 17 bytes, the table is of a longer one"):
        table().at(0, "float", bytes(17))


def test_a_table_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK no")
    with pytest.raises(LevelsError, match=r"a\.npz: cannot be read"):
        Levels.read(tmp_path / "a.npz")
    with pytest.raises(LevelsError, match=r"b\.npz: cannot be read"):
        Levels.read(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", points=np.zeros((1, 3)))
    with pytest.raises(LevelsError, match=r"c\.npz: no table of levels, it has points"):
        Levels.read(tmp_path / "c.npz")


def test_numbers_of_another_count_are_refused():
    with pytest.raises(LevelsError, match=r"the float file's numbers must be \(4, 3\), got \(4, 2\)"):
        Levels(table().points, table().places, {"float": np.zeros((4, 2), np.float32)})
    with pytest.raises(LevelsError, match=r"levels must be \(L, 3\), got \(4, 2\)"):
        Levels(table().points[:, :2], {}, {})
