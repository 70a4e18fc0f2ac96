"""PNG chunks: copy texts and colour information from one file to another byte for byte.

libvips passes texts through its own strings, which lose the encoding and truncate keywords, and drops colour
information other than profiles.

Source: W3C, Portable Network Graphics (PNG) Specification, third edition, 2025.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    Chunk = tuple[bytes, bytes]

__all__ = ["COLOURS", "TEXTS", "chunk", "encode_text", "insert", "read", "text_of", "texts"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = (b"cICP", b"sRGB", b"gAMA", b"cHRM", b"mDCV", b"cLLI", b"mDCv", b"cLLi")
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Transferred by other means, regenerated, or meaningless for other pixels: the pixels themselves, profile, EXIF,
# resolution, animation, significant bits, histogram, time of the last change, and Apple's decoder hint.
CARRIED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"eXIf", b"pHYs", b"acTL", b"fcTL", b"fdAT",
           b"sBIT", b"hIST", b"tIME", b"iDOT", b"bKGD")  # fmt: skip
XMP = b"XML:com.adobe.xmp"
BLOCK = 1 << 22
LONGEST_TEXT = 1 << 24  # bytes; limits decompression bombs


def chunk(kind: bytes, data: bytes) -> bytes:
    """Serialise a chunk.

    Args:
        kind: chunk type, four letters.
        data: content.

    Returns:
        Length, type, data and checksum.
    """
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _walk(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Type, offset and length of each chunk; stops at the end of the file, even a truncated one."""
    at = len(SIGNATURE)
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        (length,), kind = struct.unpack_from(">I", head), head[4:]
        yield kind, at, length
        at += 12 + length


def read(path: Path) -> tuple[tuple[Chunk, ...], tuple[str, ...]]:
    """Read the chunks to insert into a PNG that is made from this one.

    Args:
        path: PNG file.

    Returns:
        Colour and text chunks, except XMP, in the order of the file; and the names of the chunks that are not kept.
    """
    kept: list[Chunk] = []
    lost: dict[str, None] = {}
    with path.open("rb") as file:
        for kind, at, length in _walk(file):
            if kind in COLOURS + TEXTS and length <= LONGEST_TEXT:
                file.seek(at + 8)
                data = file.read(length)
                if not (kind == b"iTXt" and data.startswith(XMP + b"\0")):
                    kept.append((kind, data))
            elif kind not in CARRIED:
                lost[kind.decode("latin-1")] = None
    return tuple(kept), tuple(lost)


def text_of(kind: bytes, data: bytes) -> tuple[str, str] | None:
    """Parse a text chunk.

    Args:
        kind: chunk type.
        data: content.

    Returns:
        Keyword and text; None for other or damaged chunks.
    """
    keyword, end, rest = data.partition(b"\0")
    if kind not in TEXTS or not end:
        return None
    try:
        if kind == b"tEXt":
            return keyword.decode("latin-1"), rest.decode("latin-1")
        if kind == b"zTXt":
            return keyword.decode("latin-1"), _inflated(rest[1:]).decode("latin-1")
        packed, (_, _, text) = rest[0], rest[2:].split(b"\0", 2)
        return keyword.decode("latin-1"), (_inflated(text) if packed else text).decode("utf-8")
    except (ValueError, IndexError, zlib.error):
        return None


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, LONGEST_TEXT)


def encode_text(keyword: str, text: str) -> Chunk:
    """Encode a text as a chunk: Latin-1 if that suffices, else UTF-8.

    Args:
        keyword: keyword, 1 to 79 Latin-1 characters.
        text: any text.

    Returns:
        Type and data.

    Raises:
        ValueError: if PNG does not allow the keyword.
    """
    name = keyword.encode("latin-1", "replace")
    if not 1 <= len(name) <= 79 or b"\0" in name or name.decode("latin-1") != keyword:
        raise ValueError(f"the keyword of a PNG text must be 1 to 79 letters of Latin-1, got {keyword!r}; shorten it")
    try:
        return b"tEXt", name + b"\0" + text.replace("\0", "").encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", name + bytes(5) + text.encode("utf-8", "replace")


def texts(chunks: Sequence[Chunk], comments: Sequence[tuple[str, str]]) -> list[Chunk]:
    """The chunks that represent `comments`.

    Args:
        chunks: chunks of the source.
        comments: pairs of keyword and text to represent.

    Returns:
        Chunks of the source that match one of these or cannot be parsed, unchanged; the rest newly encoded.
    """
    wanted = list(comments)
    out: list[Chunk] = []
    for kind, data in chunks:
        if kind in TEXTS:
            said = text_of(kind, data)
            if said in wanted:
                wanted.remove(said)
                out.append((kind, data))
            elif said is None:
                out.append((kind, data))
    return out + [encode_text(keyword, text) for keyword, text in wanted]


def insert(path: Path, colours: Sequence[Chunk], words: Sequence[Chunk]) -> None:
    """Insert chunks into a file: colours at its start, texts before its pixels, where readers expect them.

    Args:
        path: PNG file, changed in place.
        colours: colour chunks, which replace those of the same type.
        words: text chunks to add.
    """
    if not colours and not words:
        return
    kinds = {kind for kind, _ in colours}
    with path.open("r+b") as file:
        before: list[bytes] = []
        pixels = None
        for kind, at, length in _walk(file):
            if kind in (b"IDAT", b"fcTL"):
                pixels = at
                break
            file.seek(at)
            whole = file.read(12 + length)
            if kind not in kinds:
                before.append(whole)
            if kind == b"IHDR":
                before.extend(chunk(*one) for one in colours)
        if pixels is None:
            raise ValueError(f"{path}: no pixels in this PNG")
        head = SIGNATURE + b"".join(before) + b"".join(chunk(*one) for one in words)
        _shift(file, pixels, len(head) - pixels)
        file.seek(0)
        file.write(head)


def _shift(file: BinaryIO, start: int, by: int) -> None:
    """Move everything from `start` on, block by block, because a large picture may not fit into memory twice."""
    end = file.seek(0, os.SEEK_END)
    if by > 0:
        for at in reversed(range(start, end, BLOCK)):
            file.seek(at)
            data = file.read(min(BLOCK, end - at))
            file.seek(at + by)
            file.write(data)
    elif by < 0:
        for at in range(start, end, BLOCK):
            file.seek(at)
            data = file.read(BLOCK)
            file.seek(at + by)
            file.write(data)
        file.truncate(end + by)
