"""What the tests of shrinking share."""

import pytest
from shrunk import Pretend, toy_data

from foveal.shrink import forms, recipe


@pytest.fixture
def data():
    return toy_data()


@pytest.fixture
def one_engine(monkeypatch):
    """ONNX Runtime alone, for speed."""
    monkeypatch.setattr(forms, "FORMS", tuple(form for form in forms.FORMS if form.engine == "onnxruntime"))


@pytest.fixture
def pretend(monkeypatch):
    made = Pretend()
    monkeypatch.setattr(recipe, "write", made.write)
    monkeypatch.setattr(recipe, "measure_files", made.measure)
    monkeypatch.setattr(recipe, "paired", lambda a, b, **_: ([a] * 5, [b] * 5))
    monkeypatch.setattr(recipe, "quantise_file", lambda source, target, inputs, step: target.write_bytes(b"8"))
    return made
