"""Pictures that the tests of foveal.images are made of."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms

XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" tiff:ImageWidth="60"/></rdf:RDF></x:xmpmeta>'
    b'<?xpacket end="w"?>'
)


def smooth(height: int, width: int, channels: int, dtype: type = np.uint8) -> np.ndarray:
    """A picture without noise, so that lossy formats keep it, and without symmetry, so that turns show."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x / width * 200 + 20, y / height * 180 + 30, (x + 2 * y) / (width + 2 * height) * 220, x / width * 127]
    planes[3] += y / height * 127
    pick = {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    picture = np.stack([planes[i] for i in pick], -1)
    return (picture * (257 if dtype == np.uint16 else 1)).round().astype(dtype)


def _s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def display_p3(space: bytes = b"RGB ") -> bytes:
    """A matrix profile with Display-P3 primaries and gamma 2.2 (or its grey sibling): small, valid, hand-made."""
    text = b"text\0\0\0\0Public domain\0"
    name = b"desc\0\0\0\0" + struct.pack(">I", 11) + b"Display P3\0" + bytes(4 + 4 + 2 + 1 + 67)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256))

    def xyz(*v: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(_s15(value) for value in v)

    tags = {b"cprt": text, b"desc": name, b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if space == b"RGB ":
        tags |= {b"rXYZ": xyz(0.5151, 0.2412, -0.0011), b"gXYZ": xyz(0.2920, 0.6922, 0.0419),
                 b"bXYZ": xyz(0.1571, 0.0666, 0.7841), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}  # fmt: skip
    else:
        tags[b"kTRC"] = curve
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        table += struct.pack(">4sII", tag, at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    total = at + len(body)
    head = struct.pack(">I4sI4s4s4s12s4s", total, b"lcms", 0x02400000, b"mntr", space, b"XYZ ", bytes(12), b"acsp")
    head += bytes(28) + b"".join(_s15(v) for v in (0.9642, 1.0, 0.8249))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def camera(orientation: int = 1, width: int = 60, height: int = 40, *, thumbnail: bool = False) -> bytes:
    """EXIF with tags of every directory, a maker's note among them."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112], exif[0x8298] = "Maker", "Model X", orientation, "(c) Somebody"
    sub = exif.get_ifd(0x8769)
    sub[0x829A], sub[0x9003], sub[0xA002], sub[0xA003] = (1, 200), "2024:01:02 03:04:05", width, height
    sub[0x927C], sub[0xA434] = b"MakerNote" * 9, "Lens 50"
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2] = "N", (48.0, 12.0, 30.5)
    blob = exif.tobytes()
    return _with_thumbnail(blob) if thumbnail else blob


THUMBNAIL = b"\xff\xd8the-old-thumbnail\xff\xd9"


def _with_thumbnail(blob: bytes) -> bytes:
    """Hang a second directory with a thumbnail onto EXIF."""
    data = bytearray(blob[6:])
    order = "<" if data[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, first)
    data += bytes(len(data) % 2)
    second = len(data)
    struct.pack_into(order + "I", data, first + 2 + 12 * count, second)
    start = second + 2 + 12 * 2 + 4
    data += struct.pack(order + "H", 2) + struct.pack(order + "HHII", 0x0201, 4, 1, start)
    data += struct.pack(order + "HHII", 0x0202, 4, 1, len(THUMBNAIL)) + bytes(4) + THUMBNAIL
    return b"Exif\0\0" + bytes(data)


def to_srgb(pixels: np.ndarray, icc: bytes) -> np.ndarray:
    """Pixels as a colour-managed screen shows them, by LittleCMS through Pillow."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    out = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB",
                                    renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC)  # fmt: skip
    return np.asarray(out)
