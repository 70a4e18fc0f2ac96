"""foveal's backbones are on timm's list in these tests."""

import pytest

import foveal.models.timm


@pytest.fixture(scope="session", autouse=True)
def _on_timms_list():
    foveal.models.timm.register()
