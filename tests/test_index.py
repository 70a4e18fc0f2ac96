import subprocess
import sys

import pytest

from foveal.index import RecordError, evidence_of, index, models, scan

RECORD = 'METHOD = Method(id={id}, name="{name}", kind="model", summary="A toy.", paper=None{more})\n'


def record(name="ESPCN", number="63", more=""):
    return RECORD.format(id=number, name=name, more=more)


@pytest.fixture
def folder(tmp_path):
    def write(**files):
        for file, text in files.items():
            path = tmp_path / (file.replace("__sub__", "/") + ".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return scan(tmp_path, "toys")

    return write


def test_records_are_read_from_text_and_nothing_is_imported(folder):
    found = folder(
        plain="raise RuntimeError('must not be imported')",
        mention='"""A file ends with `METHOD = Method(...)`."""\ndef f():\n    METHOD = 1\nraise RuntimeError',
        one="import a_package_nobody_has\n" + record(more=", models={'net': dict, 'net_large': dict}"),
        serve__sub__page=record("SESR", 216),
        inner__sub__deep=record("SESR", 216),
        own__sub____init__=record("Own", "None"),
    )
    assert [(item.module, item.id, item.name, item.models) for item in found] == [
        ("toys.inner.deep", 216, "SESR", ()),
        ("toys.one", 63, "ESPCN", ("net", "net_large")),
        ("toys.own", None, "Own", ()),
    ]


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"a": record(), "b": record("ESPCN again")}, r"id 63 is taken twice: by ESPCN in .*a.py and by .* in .*b.py"),
        ({"a": record(), "b": record(number=64)}, r"name 'ESPCN' is taken twice"),
        (
            {"a": record(more=", models={'net': dict}"), "b": record("SESR", 216, ", models={'net': dict}")},
            "model 'net' is taken twice",
        ),
        ({"a": record(number="ROW")}, "id of METHOD must be a literal"),
        ({"a": "METHOD = Method(id=1)"}, "METHOD says no name; write it as Method"),
        ({"a": "METHOD = 'ESPCN'"}, "METHOD must be a call of Method"),
        ({"a": record(more=", models={name: dict for name in NAMES}")}, "models of METHOD must be written out"),
    ],
)
def test_what_cannot_be_read_or_stands_twice_raises(folder, files, text):
    with pytest.raises(RecordError, match=text):
        folder(**files)


def test_models_say_where_they_stand():
    assert models()["espcn"].module == "foveal.models.restore.espcn"
    assert all(item.module.startswith("foveal.") for item in index())


def test_building_a_model_imports_its_file_alone():
    code = (
        "import sys; from foveal.models import create_model; create_model('espcn');"
        "print([m for m in sys.modules if m.startswith('foveal.models.') and m.count('.') == 3])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['foveal.models.restore.espcn']"


def test_evidence_has_the_path_of_its_method():
    assert evidence_of("foveal.models.restore.espcn") == "foveal.evidence.models.restore.espcn"
    assert evidence_of("foveal.evidence.studies.survey") == "foveal.evidence.studies.survey"
