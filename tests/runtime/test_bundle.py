import json

import pytest

from foveal.runtime import bundle as module
from foveal.runtime.bundle import Bundle, BundleError, Card, available, choose


def card(**changes):
    return Card(**{"name": "t", "scale": 2, "margin": 1, "trims": True, "files": {"float": "m.onnx"}, **changes})


def test_card_survives_its_file(tmp_path):
    one = card(sha256={"m.onnx": "ab"}, measured={"Set5": 30.0}, data=["a", "b"], model={"name": "m"})
    (tmp_path / "card.json").write_text(one.to_json())
    assert Card.read(tmp_path / "card.json") == one


def test_keys_from_the_future_are_left_alone(tmp_path):
    values = {**json.loads(card().to_json()), "colour_of_the_cover": "red"}
    (tmp_path / "card.json").write_text(json.dumps(values))
    assert Card.read(tmp_path / "card.json") == card()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scale": 0}, "scale must be a whole number of at least 1, got 0"),
        ({"scale": True}, "scale must be a whole number"),
        ({"margin": -1}, "margin must be a whole number of at least 0, got -1"),
        ({"multiple": 1.5}, "multiple must be a whole number"),
        ({"trims": "yes"}, "trims must be true or false, got 'yes'"),
        ({"version": 3}, "card version 3, this foveal reads 2; update foveal"),
        ({"channels": 1}, r"channels must be 3 \(RGB\), got 1"),
        ({"quality": "good"}, "quality must be one of fast, balanced, best, got 'good'"),
        ({"files": {"uint8": "a"}}, "files must name at least a float file"),
        ({"files": {"float": "a", "int4": "b"}}, "files may be float, uint8 and int8, got int4"),
    ],
)
def test_wrong_values_are_named(changes, text):
    with pytest.raises(BundleError, match=text):
        card(**changes)


def test_card_that_is_missing_broken_or_incomplete(tmp_path):
    path = tmp_path / "card.json"
    with pytest.raises(BundleError, match=r"no card\.json here, so this is no bundle"):
        Card.read(path)
    path.write_text("{")
    with pytest.raises(BundleError, match="cannot be read as JSON"):
        Card.read(path)
    path.write_text("[]")
    with pytest.raises(BundleError, match="must be one JSON object, got list"):
        Card.read(path)
    path.write_text('{"name": "t", "scale": 2}')
    with pytest.raises(BundleError, match="the card lacks files, margin, trims"):
        Card.read(path)


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


def test_choose_among_bundles_without_quality(shelf):
    shelf(card(name="a"))
    assert choose(2, "fast")[1] == "no bundle ×2 states its quality; using a"


def test_fingerprint_follows_the_weights(tmp_path):
    one, other = card(sha256={"m.onnx": "a"}), card(sha256={"m.onnx": "b"})
    assert Bundle(tmp_path, one).fingerprint != Bundle(tmp_path, other).fingerprint
