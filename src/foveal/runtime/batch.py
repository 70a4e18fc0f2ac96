"""Many pictures and films: which files there are, where each result goes, and which are done already.

Nothing is passed over in silence: what is found and cannot be read, and results of earlier runs that would be made
larger again beside their own source, are told to the caller.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from collections import Counter, deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.images.formats import FORMATS, READ_SUFFIXES, READABLE, SUFFIXES, Format, foreign, result_format, sniff
from foveal.runtime.film.film import is_film
from foveal.runtime.resume import RECORD, Record, Results, real_path, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["RECORD", "RESULT", "Job", "Record", "account", "find_jobs", "settings_of"]

RESULT = "a result of an earlier run"
_UNREAD = "a file that foveal cannot read"
_FOLDER = "a folder inside the folder"
_LINK = "a link to a folder"
# What nobody calls a folder, and what is a file's name where one picture is named.
_FOREIGN = frozenset((".heic", ".heif", ".jxl", ".jp2", ".j2k", ".pdf", ".svg", ".psd", ".exr", ".hdr", ".ico", ".tga",
                      ".ppm", ".pgm", ".pbm", ".pnm", ".dng", ".raw"))  # fmt: skip
_LIKE_A_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}")


@dataclass(frozen=True)
class Job:
    """One picture or film to do.

    Args:
        source: that is read.
        target: that is written.
        folder: whose record knows the target.
        problem: why it cannot be done, "" if it can.
        notes: what the user should know about it.
        page: page of a document, from 0, that becomes a file of its own; None for all that the source holds.
        pages: number of its pages.
    """

    source: Path
    target: Path
    folder: Path
    problem: str = ""
    notes: tuple[str, ...] = ()
    page: int | None = None
    pages: int = 1

    @property
    def named(self) -> str:
        """The source, and which page of it."""
        return str(self.source) if self.page is None else f"{self.source} page {self.page + 1} of {self.pages}"

    @property
    def film(self) -> bool:
        """Whether it is a film, by its name."""
        return is_film(self.source)


def account(passed_over: Sequence[tuple[Path, str]]) -> list[str]:
    """What was passed over, a sentence for each kind.

    Args:
        passed_over: files with what they are, as `find_jobs` tells them.

    Returns:
        Sentences such as "2 files that foveal cannot read passed over (.heic 2)".
    """
    said = []
    for what, one, many in (
        (RESULT, "result of an earlier run", "results of earlier runs"),
        (_UNREAD, "file that foveal cannot read", "files that foveal cannot read"),
        (_FOLDER, "folder", "folders"),
        (_LINK, "link to a folder", "links to folders"),
    ):
        paths = [path for path, kind in passed_over if kind == what]
        if not paths:
            continue
        kinds = Counter(path.suffix.lower() or "no suffix" for path in paths) if what == _UNREAD else {}
        listed = f" ({', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))})" if kinds else ""
        said.append(f"{len(paths)} {one if len(paths) == 1 else many} passed over{listed}")
    return said


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises where a name is too long


def _is_there(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110  Path.exists raises where a name is too long


def _has_magic(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in READ_SUFFIXES


def _is_written(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _in_folder(
    folder: Path, recursive: bool, not_in: Path | None, locked: Callable[[OSError], None], pass_over: Any
) -> Iterator[tuple[Path, Path]]:
    """Pictures and films of a folder with their path in it; hidden ones and the results' own folder are left out."""
    for where, folders, files in os.walk(folder, onerror=locked):
        here = Path(where)
        inside = sorted(name for name in folders if not name.startswith(".") and real_path(here / name) != not_in)
        folders[:] = [name for name in inside if recursive and not (here / name).is_symlink()]
        for name in inside:
            if name not in folders:
                pass_over(here / name, _LINK if recursive else _FOLDER)
        for name in sorted(files):
            if name.startswith("."):
                continue
            if _is_picture(here / name) or is_film(here / name):
                yield here / name, (here / name).relative_to(folder)
            else:
                pass_over(here / name, _UNREAD)


def find_jobs(
    inputs: Sequence[str | Path],
    out: str | Path | None,
    *,
    scale: int,
    recursive: bool = False,
    suffix: str | None = None,
    file_format: str = "",
    split: bool = False,
    pass_over: Callable[[Path, str], None] | None = None,
) -> list[Job]:
    """Turn what the user named into pictures and films to do.

    Args:
        inputs: files, folders and globs.
        out: a folder, or for one picture a file; beside the source by default.
        scale: output side over input side; makes the default suffix.
        recursive: look into folders inside folders; the results form the same tree.
        suffix: added to a result's name before the dot; by default "_x4" beside the source and "" elsewhere.
        file_format: of the results of pictures; by default each keeps its own.
        split: whether each page of a TIFF document becomes a file of its own, `name-001.png` and so on.
        pass_over: called with every file that is found and not done, and with what it is; see `account`.

    Returns:
        The jobs, each source once, in the order they were named. A source that is not there and a folder that cannot be
        read are jobs with a problem. None, if all that was found are results of earlier runs.

    Raises:
        ValueError: nothing was named or found, a folder without a place for its results, a place that can be none, or
            an unknown format.
    """
    wanted = SUFFIXES.get(f".{file_format.lower()}")
    if file_format and wanted is None:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    if not inputs:
        raise ValueError("name at least one picture, folder or glob")
    if "" in map(str, inputs):
        raise ValueError("an empty name was given as a picture; is a variable of the shell not set?")
    text = None if out is None else str(out)
    passed: list[tuple[Path, str]] = []
    whole = real_path(Path(text)) if text else None
    found: dict[Path, Path] = {}
    given_as: dict[Path, str] = {}  # paths lose the second slash of an address
    broken: list[Job] = []
    folders = 0

    def locked(error: OSError) -> None:
        path = Path(os.fsdecode(error.filename))
        broken.append(Job(path, path, path, f"{path}: the folder cannot be read ({error.strerror})"))

    def skip(path: Path, what: str) -> None:
        passed.append((path, what))

    for given in inputs:
        path = Path(given)
        if _is_folder(path):
            folders += 1
            found.update(_in_folder(path, recursive, whole if whole != real_path(path) else None, locked, skip))
        elif not _is_there(path) and _has_magic(str(given)):
            folders += 1
            if "**" in str(given):  # which would pass over what it cannot read
                base = str(given).partition("**")[0]
                deque(os.walk(base if not _has_magic(base) else ".", onerror=locked), maxlen=0)
            for match in map(Path, sorted(glob.glob(str(given), recursive=True))):  # noqa: PTH207
                if _is_folder(match):
                    if "**" not in str(given):
                        skip(match, _FOLDER)
                elif _is_picture(match) or is_film(match):
                    found[match] = Path(match.name)
                else:
                    skip(match, _UNREAD)
        else:
            found[path] = Path(path.name)
            given_as[path] = str(given)
    if not found and not broken:
        hint = "" if recursive else " (--recursive looks into folders inside folders)"
        said = "; ".join(account(passed)) or f"nothing that foveal reads is there{hint}"
        raise ValueError(f"no picture in {', '.join(str(i) for i in inputs)}; {said}")
    if text is None and any(_is_folder(Path(i)) for i in inputs):
        raise ValueError("a folder of pictures needs a place for the results: -o FOLDER")
    one = len(found) == 1 and not folders
    as_file = text is not None and one and not text.endswith(("/", os.sep)) and not _is_folder(Path(text))
    if text is not None:
        as_file = as_file and (is_film if is_film(next(iter(found))) else _is_written)(Path(text))
        if not as_file:
            _refuse_as_folder(text, one)
        elif wanted and not is_film(Path(text)) and SUFFIXES[Path(text).suffix.lower()] is not wanted:
            raise ValueError(f"-o {text} asks for another format than --format {file_format}; leave one of them out")
    jobs: list[Job] = []
    for source, relative in found.items():
        ending, notes, problem = _ending(source, given_as.get(source, ""), wanted, any_format=as_file)
        if text is None:
            added = f"_x{scale}" if suffix is None else suffix
            target, folder = source.with_name(f"{source.stem}{added}{ending}"), source.parent
        elif as_file:
            target = Path(text)
            folder = target.parent
        else:
            folder = Path(text)
            target = folder / relative.with_name(f"{relative.stem}{suffix or ''}{ending}")
        jobs.append(Job(source, target, folder, problem or _unwritable(source, target), notes))
    jobs = _without_results(jobs, set(given_as), skip)
    if split:
        jobs = [one for job in jobs for one in _split(job)]
    for path, what in passed:
        if pass_over is not None:
            pass_over(path, what)
    return _without_clashes(jobs) + broken


def _split(job: Job) -> list[Job]:
    """A job for each page of a document; the job itself for anything else, and for what cannot be read."""
    from foveal.images import PictureError, probe

    try:
        with job.source.open("rb") as file:
            document = sniff(file.read(32)) == "tiff"
        count = probe(job.source).frames if document and not job.problem else 1
    except (OSError, PictureError):  # said in its turn
        count = 1
    if count == 1:
        return [job]
    digits = max(3, len(str(count)))
    names = [f"{job.target.stem}-{number:0{digits}}{job.target.suffix}" for number in range(1, count + 1)]
    return [replace(job, target=job.target.with_name(name), page=page, pages=count) for page, name in enumerate(names)]


def _without_results(jobs: list[Job], named: set[Path], skip: Callable[[Path, str], None]) -> list[Job]:
    """Leave out the results of earlier runs that would be made larger again beside their own source."""
    results = Results()
    sources = {real_path(job.source) for job in jobs}
    places = {real_path(job.target): real_path(job.source) for job in jobs}
    kept = []
    for job in jobs:
        source = real_path(job.source)
        made = results.of(job.source)
        again = made and (made[0] in sources or (job.source not in named and made[1] == real_path(job.folder)))
        # Without a record too: what stands where another's result goes is no source.
        if again or places.get(source, source) != source:
            skip(job.source, RESULT)
        else:
            kept.append(job)
    return kept


def _without_clashes(jobs: list[Job]) -> list[Job]:
    """Tell those whose result has no place of its own."""
    taken: dict[Path, Path] = {}
    told = []
    for job in jobs:
        key, problem = real_path(job.target), job.problem
        if problem:
            pass
        elif key == real_path(job.source):
            problem = f"{job.source}: the result would take the place of its source; give another -o or a --suffix"
        elif key in taken:
            problem = f"{job.source}: {taken[key]} already becomes {job.target}; give one of them another place"
        else:
            taken[key] = job.source
        told.append(replace(job, problem=problem))
    return told


def _refuse_as_folder(text: str, one: bool) -> None:
    """Stop what was hardly meant as the name of a folder, before a folder of that name is made."""
    known = ", ".join(form.suffixes[0] for form in FORMATS.values())
    path = Path(text)
    if not text:
        raise ValueError("-o is empty; name a file or a folder (is a variable of the shell not set?)")
    if text == "-":
        raise ValueError("-o - would write to standard output, which foveal does not; name a file or a folder")
    if _is_folder(path) or text.endswith(("/", os.sep)):
        return
    if _is_there(path):
        raise ValueError(f"-o {text} is there and is no folder; name a folder, or one picture and a file in {known}")
    if os.path.islink(path):  # noqa: PTH114
        raise ValueError(f"-o {text} is a link that leads nowhere; name a folder")
    if _is_written(path):
        raise ValueError(f"-o {text} names one file, and there may be several pictures; name a folder, or end it in /")
    if path.suffix.lower() in _FOREIGN or is_film(path) or (one and _LIKE_A_SUFFIX.fullmatch(path.suffix)):
        raise ValueError(
            f"-o {text}: foveal writes no {path.suffix} files; end the name in one of {known}, or in / for a folder"
        )


def _ending(source: Path, given: str, wanted: Format | None, *, any_format: bool) -> tuple[str, tuple[str, ...], str]:
    """The suffix of a result, what is to be said about it, and why there can be none."""
    ending = source.suffix if _is_written(source) else ".png"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", given):
        return ending, (), f"{given}: foveal reads files, no addresses; download it first"
    try:
        if not stat.S_ISREG(source.stat().st_mode):
            return ending, (), f"{source}: it is a pipe or a device, not a file; save the picture to a file first"
        with source.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        if given == "-":
            return ending, (), "-: foveal does not read from standard input; save the picture to a file first"
        return ending, (), f"{source}: no such file"
    except OSError as error:
        return ending, (), f"{source}: it cannot be opened ({error.strerror})"
    known = sniff(head)
    if known is None and is_film(source):
        return source.suffix, (), ""
    if wanted is not None:
        return wanted.suffixes[0], (), ""
    if known is None:
        # With a picture's name it is read in its turn, and what is wrong is said then.
        return ending, (), "" if any_format or _is_picture(source) else "{}: {}; {}".format(source, *foreign(head))
    if known not in FORMATS:
        written = FORMATS[result_format(known)]
        note = f"foveal writes no {READABLE[known].label}, so the result is a {written.label}; --format chooses another"
        return written.suffixes[0], () if any_format else (note,), ""
    if _is_written(source) and SUFFIXES[source.suffix.lower()].name == known:
        return source.suffix, (), ""
    form = FORMATS[known]
    note = f"it is a {form.label}, whatever its name says, and stays one"
    return form.suffixes[0], () if any_format or not source.suffix else (note,), ""


def _unwritable(source: Path, target: Path) -> str:
    """Why a name cannot be that of a file here, or ""."""
    try:
        target.lstat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            length = len(os.fsencode(target.name))
            return f"{source}: its result's name would be too long ({length} bytes); give -o FOLDER, or a shorter name"
        return f"{source}: its result cannot be {target} ({error.strerror}); give another -o"
    return ""
