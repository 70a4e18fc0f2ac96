import pytest

from foveal.measure.benchmarks import SETS, DataError, find, folders


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder and no FOVEAL_DATA."""
    inner = tmp_path / "work"
    inner.mkdir()
    monkeypatch.chdir(inner)
    monkeypatch.delenv("FOVEAL_DATA", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["Set5", "Set14", "BSD100", "Urban100_20"])
def test_super_resolution_sets_may_stand_below_sr_or_directly(elsewhere, monkeypatch, name):
    monkeypatch.setenv("FOVEAL_DATA", str(elsewhere / "here"))
    (elsewhere / "here" / name).mkdir(parents=True)
    assert find(name) == elsewhere / "here" / name
    (elsewhere / "here" / "sr" / name).mkdir(parents=True)
    assert find(name) == elsewhere / "here" / "sr" / name


def test_the_named_folder_comes_first_then_data_then_shared(elsewhere, monkeypatch):
    for folder in ("shared/data", "work/data", "named"):
        (elsewhere / folder / "bsds400").mkdir(parents=True)
        monkeypatch.setenv("FOVEAL_DATA", str(elsewhere / "named"))
        assert find("bsds400").resolve() == elsewhere / folder / "bsds400"
    assert len(folders()) == 3


def test_a_set_that_the_named_folder_lacks_is_looked_for_further(elsewhere, monkeypatch):
    monkeypatch.setenv("FOVEAL_DATA", str(elsewhere / "named"))
    (elsewhere / "work" / "data" / "roadscene").mkdir(parents=True)
    assert find("roadscene").resolve() == elsewhere / "work" / "data" / "roadscene"


def test_cifar10_is_the_folder_that_holds_both_files(elsewhere):
    data = elsewhere / "work" / "data"
    data.mkdir()
    (data / "cifar10_train.npz").touch()
    with pytest.raises(DataError):
        find("cifar10")
    (data / "cifar10_test.npz").touch()
    assert find("cifar10").resolve() == data
    assert find("cifar10_test").resolve() == data / "cifar10_test.npz"


@pytest.mark.parametrize("name", SETS)
def test_what_is_missing_is_told_with_where_it_was_looked_for(elsewhere, monkeypatch, name):
    monkeypatch.setenv("FOVEAL_DATA", str(elsewhere / "named"))
    with pytest.raises(DataError, match=f"benchmark data '{name}' is not on this machine .*set FOVEAL_DATA") as caught:
        find(name)
    assert str(elsewhere / "named") in str(caught.value)


def test_an_unknown_name_raises_with_the_known_ones():
    with pytest.raises(DataError, match="no benchmark set is called 'set5'; known are Set5, Set14"):
        find("set5")
