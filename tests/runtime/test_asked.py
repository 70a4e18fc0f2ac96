"""What `--fix` asks for: names, strengths, and what is refused with what to write instead."""

import pytest

from foveal.runtime.asked import FIXES, FORMULAS, FixError, asked_fixes, asked_stroke, spelled


def test_names_and_strengths():
    assert asked_fixes("auto") == {}
    assert asked_fixes("rain, noise") == {"rain": "", "noise": ""}
    assert asked_fixes("blur = 1.5,exposure=-0.7,holes") == {"blur": "1.5", "exposure": "-0.7", "holes": ""}
    assert asked_stroke("motion:9:-30") == (9, -30)


def test_one_spelling():
    assert spelled(asked_fixes("holes,blur=2, jpeg")) == "jpeg,holes,blur=2"
    assert spelled(asked_fixes("auto")) == "auto"
    for name in FIXES | FORMULAS:
        text = "exposure=+1" if name == "exposure" else name
        assert spelled(asked_fixes(text)) == text


@pytest.mark.parametrize(
    ("fix", "text"),
    [
        ("mud", "fix must be auto, or of jpeg, noise, rain, snow, light, holes, blur, exposure, rolling-shutter with"),
        ("", "fix must be auto"),
        ("exposure", r"how bright a picture was meant to be cannot be told .* exposure=\+1 for twice the light"),
        ("exposure=much", "exposure must be a number from -5 to 5, got 'much'; write exposure=STOPS"),
        ("exposure=9", "exposure must be a number from -5 to 5, got '9'"),
        ("exposure=nan", "exposure must be a number from -5 to 5, got 'nan'"),
        ("blur=0", "blur must be a number from 0.3 to 4, got '0'; write blur, blur=SIGMA in pixels, or"),
        ("blur=", "write blur, blur=SIGMA in pixels, .*, got 'blur='; leave out what stands behind the name"),
        ("blur=motion:9", "a movement must be motion:LENGTH:ANGLE with 1 to 40 pixels .*, got 'motion:9'; write blur="),
        ("blur=motion:90:0", "got 'motion:90:0'"),
        ("blur=motion:a:b", "got 'motion:a:b'"),
        ("blur=motions:9:9", "got 'motions:9:9'"),
        ("rolling-shutter=2", "rolling-shutter must be a number from -1 to 1, got '2'"),
        ("rain=3", "write rain alone, got 'rain=3'; leave out what stands behind the name"),
        ("holes=3", "write holes alone, got 'holes=3'"),
    ],
)
def test_what_cannot_be_is_refused(fix, text):
    with pytest.raises(FixError, match=text):
        asked_fixes(fix)
