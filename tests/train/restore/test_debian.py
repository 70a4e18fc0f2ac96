import csv
import subprocess
import zipfile

import numpy as np
import pytest
from PIL import Image

from foveal.errors import FovealError
from foveal.train.restore import debian
from foveal.train.restore.debian import FetchError, Package, fetch, prepare

PACKAGE = Package("some-wallpapers", "CC0-1.0", least=0.03)


@pytest.fixture
def archive(tmp_path):
    """A .deb with one detailed picture in two sizes, a flat one, a see-through one, and one in a game's archive."""
    if not debian.shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not here")
    root = tmp_path / "root"
    images = root / "usr/share/wallpapers/Leaf/contents/images"
    images.mkdir(parents=True)
    (root / "DEBIAN").mkdir()
    control = "Package: some-wallpapers\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    (root / "DEBIAN/control").write_text(control)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (301, 305, 3), np.uint8)
    Image.fromarray(noise).save(images / "305x301.png")
    Image.fromarray(noise[:200, :200]).save(images / "200x200.png")
    Image.new("RGB", (300, 300), (9, 9, 9)).save(root / "usr/share/wallpapers/flat.png")
    Image.fromarray(np.dstack([noise, noise[..., :1]])).save(root / "usr/share/wallpapers/glass.png")
    with zipfile.ZipFile(root / "usr/share/wallpapers/game.pk3", "w") as z:
        z.write(images / "305x301.png", "textures/wall.png")
        z.write(images / "305x301.png", "textures/wall_normal.png")
    debs = tmp_path / "debs"
    debs.mkdir()
    subprocess.run(
        ["dpkg-deb", "--build", str(root), str(debs / "some-wallpapers_1.0_all.deb")], check=True, capture_output=True
    )
    return debs


def test_detailed_pictures_and_their_sources(tmp_path, archive):
    said = []
    assert prepare(tmp_path / "out", archive, (PACKAGE,), said.append) == 2
    with (tmp_path / "out/sources.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"].rsplit("/", 1)[1] for row in rows] == ["305x301.png", "wall.png"]
    assert {(row["package"], row["version"], row["licence"]) for row in rows} == {("some-wallpapers", "1.0", "CC0-1.0")}
    with Image.open(tmp_path / "out/0000.png") as picture:
        assert picture.size == (300, 300), "sides are multiples of 12"
    assert said == ["some-wallpapers: 2 pictures"]


def test_lossy_pictures_are_halved(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (500, 600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    assert debian._load(tmp_path / "a.jpg").shape == (240, 300, 3)
    assert debian._load(tmp_path / "a.jpg", halved=False).shape == (492, 600, 3)


def test_reduced_pictures(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (500, 600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert debian._load(tmp_path / "a.png", 2).shape == (240, 300, 3)
    with pytest.raises(ValueError, match="reduce must be at least 1, got 0"):
        prepare(tmp_path / "out", tmp_path, (PACKAGE,), reduce=0)


def test_fetching_without_apt(tmp_path, monkeypatch):
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"fetching needs apt-get .* put the .deb files into the folder"):
        fetch(tmp_path, (PACKAGE,))


def test_package_that_apt_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(debian.shutil, "which", lambda name: name)
    refused = subprocess.CompletedProcess([], 100, "", "E: Unable to locate package some-wallpapers")
    monkeypatch.setattr(debian.subprocess, "run", lambda *a, **k: refused)
    with pytest.raises(RuntimeError, match="apt-get download some-wallpapers failed: E: Unable to locate"):
        fetch(tmp_path, (PACKAGE,), say=lambda line: None)


def test_archives_that_cannot_be_unpacked(tmp_path, monkeypatch):
    (tmp_path / "some-wallpapers_1.0_all.deb").write_bytes(b"no archive")
    monkeypatch.setattr(debian.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        debian.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 2, "", "not a Debian format archive\n")
    )
    with pytest.raises(
        FetchError, match=r"some-wallpapers_1.0_all.deb cannot be unpacked: not a Debian .* remove it to fetch it again"
    ):
        prepare(tmp_path / "out", tmp_path, (PACKAGE,), print)
    monkeypatch.setattr(debian.shutil, "which", lambda name: None if name == "dpkg-deb" else name)
    with pytest.raises(FetchError, match=r"unpacking needs dpkg-deb .* any folder of pictures does as well"):
        prepare(tmp_path / "out", tmp_path, (PACKAGE,), print)
    assert issubclass(FetchError, FovealError)
