"""What must be so of the repository as a whole."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from documents import ROOT, load

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BINARY = {".png", ".onnx", ".safetensors", ".jpg", ".webp", ".gif", ".tiff", ".avif", ".bmp", ".icc"}


large_files = load("large_files")
before_after = load("before_after")
FILES = large_files.tracked()


def test_no_file_is_large():
    assert FILES
    assert large_files.too_large(FILES) == []


def test_a_large_file_is_noticed(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(5))
    (line,) = large_files.too_large([path], limit=4)
    assert line.startswith(f"{path}: 0.0 MB")
    assert large_files.too_large([path], limit=5) == []


def test_files_are_found_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name in ("src/a.py", "site/b.html", ".venv/c.py", "x.egg-info/d", "src/__pycache__/e.pyc", ".ci/run"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [str(path.relative_to(tmp_path)) for path in large_files.tracked(tmp_path)] == [".ci/run", "src/a.py"]


# Put together here, so that this file does not match itself.
PRIVATE = re.compile(
    "|".join(
        [
            r"(?<![\w.])/(?:h" + r"ome|r" + r"oot|w" + r"ork|U" + r"sers)/(?!me/)\w",
            r"(?:extra-)?index" + r"-url\s*=",
            r"https?://[\w.-]*(?:py" + r"pi|artif" + r"actory|nex" + r"us|dev" + r"pi)\b",
            r"https?://(?:\d+\.){3}\d+",
            r"https?://(?:local" + r"host|[\w-]+)(?::\d+)?/(?:simple|root)",
        ]
    )
)


def private(text):
    """The first machine path or registry host in a text, or ""."""
    found = PRIVATE.search(text)
    return found[0] if found else ""


def test_no_file_names_a_machine_or_a_registry():
    found = {}
    for path in FILES:
        if path.suffix not in BINARY and (match := private(path.read_text(encoding="utf-8", errors="replace"))):
            found[str(path.relative_to(ROOT))] = match
    assert found == {}


@pytest.mark.parametrize(
    "text",
    ["/ho" + "me/ann/pictures", "see /wo" + "rk/x", "https://py" + "pi.org/simple", "http://" + "10.0.0.1:8080/"],
)
def test_a_machine_or_registry_is_noticed(text):
    assert private(text)


def test_paths_that_belong_to_everybody_pass():
    assert private("/usr/share/backgrounds and docs/home/index.md") == ""
    assert private("/ho" + "me/me/.cache in a transcript") == ""


def test_every_sample_has_its_original_and_its_licence():
    from PIL import Image

    table = (ROOT / "samples" / "README.md").read_text(encoding="utf-8")
    samples = sorted((ROOT / "samples").glob("*.png"))
    assert 3 <= len(samples) <= 5
    assert sum(path.stat().st_size for path in FILES if path.is_relative_to(ROOT / "samples")) < 2_000_000
    for path in samples:
        assert re.search(rf"^\| {path.stem} \| [^|]+, \d{{4}} \| CC[\w.-]+ \| `[^`]+` \|$", table, re.MULTILINE), (
            path.stem
        )
        with Image.open(path) as small, Image.open(path.parent / "original" / path.name) as large:
            assert large.size == (4 * small.width, 4 * small.height)
    assert len(list((ROOT / "samples" / "original").iterdir())) == len(samples)


def test_samples_are_the_originals_reduced():
    import numpy as np
    from PIL import Image

    from foveal.images import imresize

    for path in sorted((ROOT / "samples").glob("*.png")):
        with Image.open(path) as small, Image.open(path.parent / "original" / path.name) as large:
            assert np.array_equal(imresize(np.asarray(large), 1 / 4), np.asarray(small)), path.name


def test_no_sample_is_trained_on():
    from foveal.train.restore.debian import PACKAGES

    table = (ROOT / "samples" / "README.md").read_text(encoding="utf-8")
    (package,) = re.findall(r"`(lomiri-[\w.-]+)` \|$", table, re.MULTILINE)
    sources = re.findall(r"`usr/share/backgrounds/([^`]+)`", table)
    assert len(sources) == len(list((ROOT / "samples").glob("*.png")))
    skipped = {found.name: found.skip for found in PACKAGES}.get(package)
    assert skipped is None or [name for name in sources if not name.startswith(skipped)] == []


def test_what_an_index_would_get_names_no_path(monkeypatch):
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    from foveal.runtime.kernels import WANTED

    def wanted():
        extras = ProjectMetadata(str(ROOT), PluginManager()).core.optional_dependencies
        return [line for lines in extras.values() for line in lines]

    assert any("@ file:" in line for line in wanted())  # a checkout builds its own kernels
    monkeypatch.setenv("FOVEAL_KERNELS", f"=={WANTED}")
    assert [line for line in wanted() if "@" in line] == []
    assert f"foveal-kernels=={WANTED}" in wanted()


def test_licence_is_apache():
    assert PROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(PROJECT['project']['version'])}\b", text, re.MULTILINE)


def test_a_wheel_holds_bundles_and_catalogue(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = [path for path in FILES if path.is_relative_to(ROOT / "src")]
    expected = {path.relative_to(ROOT / "src").as_posix() for path in package}
    assert {"foveal/catalogue/catalogue.jsonl"} <= expected
    assert any(name.startswith("foveal/bundles/") and name.endswith(".onnx") for name in expected)
    assert expected - names == set()
    assert any(name.endswith("licenses/NOTICE") for name in names)


def test_the_light_install_is_light():
    light = {re.split(r"[<>=\[; ]", line)[0] for line in PROJECT["project"]["dependencies"]}
    assert light == {"numpy", "onnxruntime", "pillow", "pyvips", "pyvips-binary", "rich", "typer"}


def test_constraints_are_names_and_versions():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    odd = [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; [^@/\\]+)?", line)]
    assert odd == []
    pinned = {line.split("==")[0] for line in lines}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = {
        re.split(r"[<>=\[; ]", line)[0].lower()
        for line in [*PROJECT["project"]["dependencies"], *(line for group in extras.values() for line in group)]
    }
    assert wanted - {"foveal", "foveal-kernels"} - pinned == set(), "say make constraints"


@pytest.mark.parametrize("line", ["torch==2.15.0+cpu", "torch @ file:///x", "torch>=2"])
def test_other_lines_are_no_constraints(line):
    assert not re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; [^@/\\]+)?", line)


def recipe(target):
    """The commands of a make target."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.findall(
        r"^\t(.+)$", re.search(rf"^{target}: setup.*\n((?:\t.*\n)+)", text, re.MULTILINE)[1], re.MULTILINE
    )


def test_pre_commit_runs_what_make_lint_runs():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert "repo: local" in text
    assert "https:" not in text
    assert re.findall(r"entry: (.+)", text) == recipe("lint")


def test_contributing_names_targets_that_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE))
    assert {"setup", "lint", "test"} <= named
    assert named <= targets


def test_ci_calls_the_targets():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert [target for target in ("test", "lint", "docs") if f"\nmake {target}" not in text] == []


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    named = set(re.findall(r": ([\w-]+\.md)$", text, re.MULTILINE))
    assert pages - named == set()
    assert "font: false" in text


def test_figures_go_between_the_markers():
    page = f"a\n{before_after.START}\nold \\1\n{before_after.END}\nb"
    assert before_after.filled(page, r"new \1") == page.replace(r"old \1", r"new \1")
    with pytest.raises(ValueError, match="each once"):
        before_after.filled("a page without them", "new")


def test_halves_stand_side_by_side():
    import numpy as np

    dark, light = np.zeros((20, 10, 3), np.uint8), np.full((20, 10, 3), 200, np.uint8)
    sheet = np.asarray(before_after.side_by_side([("a", dark), ("b", light)]))
    assert sheet.shape == (20 * before_after.ZOOM + before_after.BAND, 2 * 10 * before_after.ZOOM + 8, 3)
    below = sheet[before_after.BAND :]
    assert (below[:, : 10 * before_after.ZOOM] == 0).all()
    assert (below[:, -10 * before_after.ZOOM :] == 200).all()


def undocumented(source):
    """Public dataclasses whose `Args:` do not name exactly their fields, and perhaps those of a base."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        fields = [
            item.target.id
            for item in node.body
            if isinstance(item, ast.AnnAssign)
            and not item.target.id.startswith("_")
            and "init=False" not in ast.unparse(item)
            and "ClassVar" not in ast.unparse(item.annotation)
        ]
        _, _, section = (ast.get_docstring(node) or "").partition("\nArgs:\n")
        section = section.split("\n\n")[0]
        named = re.findall(r"^ {4}(\w+):", section, re.MULTILINE)
        if node.bases:  # fields of the base are described again where a reader looks for them
            named = [name for name in named if name in fields]
        if sorted(named) != sorted(fields):
            found.append(node.name)
    return found


@pytest.mark.dear("reads every file of the package")
def test_dataclasses_document_their_fields():
    sources = [path for path in FILES if path.suffix == ".py" and path.is_relative_to(ROOT / "src")]
    found = {str(path.relative_to(ROOT)): names for path in sources if (names := undocumented(path.read_text("utf-8")))}
    assert found == {}


def test_a_field_without_a_description_is_noticed():
    good = '@dataclass(frozen=True)\nclass A:\n    """A.\n\n    Args:\n        x: one.\n    """\n\n    x: int\n'
    assert undocumented(good) == []
    assert undocumented(good + "    y: int = 0\n") == ["A"]


def named(path):
    """Modules and names of foveal that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "foveal":
            yield from ((node.module, name.name) for name in node.names)


@pytest.mark.dear("imports what they import")
@pytest.mark.parametrize("folder", ["bench", "scripts", "examples"])
def test_programs_beside_the_package_import_what_is_there(folder):
    programs = sorted((ROOT / folder).glob("*.py"))
    assert programs
    for path in programs:
        for module, name in named(path):
            held = importlib.import_module(module)
            submodule = importlib.util.find_spec(f"{module}.{name}") if hasattr(held, "__path__") else None
            assert hasattr(held, name) or submodule, f"{path.name} imports {name} from {module}, which has none"
