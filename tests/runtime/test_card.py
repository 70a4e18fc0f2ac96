import json

import pytest

from foveal.runtime.bundle import available
from foveal.runtime.card import BundleError, Card


def card(**changes):
    return Card(**{"name": "t", "scale": 2, "margin": 1, "trims": True, "files": {"float": "m.onnx"}, **changes})


def test_card_survives_its_file(tmp_path):
    one = card(
        sha256={"m.onnx": "ab"},
        purpose="restoration",
        scale=1,
        measured={"Set5": 30.0},
        data=["a", "b"],
        model={"name": "m"},
    )
    (tmp_path / "card.json").write_text(one.to_json())
    assert Card.read(tmp_path / "card.json") == one


def test_cards_of_the_first_version_are_read_with_defaults(tmp_path):
    values = json.loads(card().to_json())
    for name in ("purpose", "tiling", "minimum"):
        del values[name]
    (tmp_path / "card.json").write_text(json.dumps({**values, "version": 1, "task": "super-resolution"}))
    assert Card.read(tmp_path / "card.json") == card(version=1)
    assert (card().purpose, card().tiling, card().minimum) == ("super-resolution", "exact", 1)


def test_shipped_cards_are_read():
    for bundle in available():
        purpose = "restoration" if bundle.card.scale == 1 else "super-resolution"
        assert (bundle.card.purpose, bundle.card.tiling, bundle.card.minimum) == (purpose, "exact", 1)
        values = json.loads((bundle.folder / "card.json").read_text())
        values.pop("task", None)
        assert bundle.card.to_dict().items() >= values.items()


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
        ({"version": 0}, "version must be a whole number of at least 1, got 0"),
        ({"minimum": 0}, "minimum must be a whole number of at least 1, got 0"),
        ({"purpose": "art"}, "purpose must be one of super-resolution, restoration, classification, dense, got 'art'"),
        ({"tiling": "none"}, "tiling must be one of exact, overlap, got 'none'"),
        ({"tiling": "overlap"}, "a network that does not trim, got margin 1 and trims True"),
        (
            {"tiling": "overlap", "trims": False, "margin": 0},
            "need a margin of at least 1 .*, got margin 0 and trims F",
        ),
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
