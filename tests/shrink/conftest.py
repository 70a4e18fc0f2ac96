"""What the tests of shrinking share."""

import pytest
from shrunk import Pretend, toy_data

from foveal.shrink import forms
from foveal.shrink.quantize import int8


@pytest.fixture
def data():
    return toy_data()


@pytest.fixture
def one_engine(monkeypatch):
    """ONNX Runtime alone, for speed."""
    monkeypatch.setattr(int8, "why_not", lambda: "nncf is not installed")
    monkeypatch.setattr(forms, "FORMS", tuple(form for form in forms.FORMS if form.engine == "onnxruntime"))


@pytest.fixture
def pretend(monkeypatch):
    made = Pretend()
    made.patch(monkeypatch)
    return made
