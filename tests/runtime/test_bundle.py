import pytest

from foveal.runtime import bundle as module
from foveal.runtime.bundle import Bundle, available, choose
from foveal.runtime.card import BundleError, Card


def card(**changes):
    return Card(**{"name": "t", "scale": 2, "margin": 1, "trims": True, "files": {"float": "m.onnx"}, **changes})


def test_damaged_file_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"sha256 is d9298a10d1b0…, the card says 0000.*install the bundle again"):
        Bundle(tmp_path, card(sha256={"m.onnx": "0" * 64})).file("float")
    assert Bundle(tmp_path, card()).file("float") == tmp_path / "m.onnx"


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(BundleError, match="no uint8 file; it has float"):
        Bundle(tmp_path, card()).file("uint8")
    with pytest.raises(BundleError, match="missing; the bundle is incomplete"):
        Bundle(tmp_path, card()).file("float")
    with pytest.raises(BundleError, match="must be a plain file name"):
        Bundle(tmp_path, card(files={"float": "../m.onnx"})).file("float")


def test_load_by_name_and_path():
    first = available()[0]
    by_name = Bundle.load(first.card.name)
    assert by_name == Bundle.load(first.folder) == Bundle.load(first.folder / "card.json")
    with pytest.raises(BundleError, match=rf"no bundle '{first.card.name}y'.*closest: {first.card.name}"):
        Bundle.load(first.card.name + "y")


def test_shipped_bundles_are_whole():
    bundles = available()
    assert {(b.card.scale, b.card.quality) for b in bundles} >= {
        (s, q) for s in (2, 3, 4) for q in ("fast", "balanced")
    }
    for bundle in bundles:
        for kind in bundle.card.files:
            assert bundle.card.sha256[bundle.card.files[kind]]
            bundle.file(kind)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    def put(*cards):
        for one in cards:
            (tmp_path / one.name).mkdir()
            (tmp_path / one.name / "card.json").write_text(one.to_json())
        monkeypatch.setattr(module, "SHIPPED", tmp_path)

    return put


def test_choose_the_quality_or_the_nearest_and_say_so(shelf):
    shelf(card(name="a", quality="fast"), card(name="b", quality="balanced"), card(name="c", scale=3, quality="best"))
    assert choose(2, "fast")[0].card.name == "a"
    bundle, note = choose(2, "best")
    assert (bundle.card.name, note) == ("b", "")
    shelf(card(name="d", scale=4, quality="balanced", equivariant=True))
    assert choose(4, "best")[1] == "no bundle of quality best ×4 yet; using d", "mirror images would not help"
    assert choose(2, "balanced")[1] == ""
    assert choose(3, "fast")[0].card.name == "c"
    with pytest.raises(BundleError, match="no super-resolution bundle enlarges by 5; there are some for 2, 3, 4"):
        choose(5)
    with pytest.raises(ValueError, match="quality must be one of fast, balanced, best, got 'great'"):
        choose(2, "great")


def test_choose_obeys_purpose(shelf):
    shelf(
        card(name="denoise", scale=1, purpose="restoration", quality="fast"),
        card(name="sharpen", purpose="restoration", quality="balanced"),
        card(name="larger", quality="fast"),
    )
    assert choose(2)[0].card.name == "larger"
    assert choose(2, purpose="restoration")[0].card.name == "sharpen"
    assert choose(1, "fast", purpose="restoration")[0].card.name == "denoise"
    with pytest.raises(BundleError, match=r"no super-resolution bundle enlarges by 1; there are some for 2$"):
        choose(1)
    with pytest.raises(BundleError, match="no dense bundle enlarges by 1; none is installed for that purpose"):
        choose(1, purpose="dense")
    with pytest.raises(ValueError, match=r"purpose must be one of super-resolution, .*, dense, got 'art'"):
        choose(1, purpose="art")


def test_choose_among_bundles_without_quality(shelf):
    shelf(card(name="a"))
    assert choose(2, "fast")[1] == "no bundle ×2 states its quality; using a"


def test_fingerprint_follows_the_weights(tmp_path):
    one, other = card(sha256={"m.onnx": "a"}), card(sha256={"m.onnx": "b"})
    assert Bundle(tmp_path, one).fingerprint != Bundle(tmp_path, other).fingerprint
