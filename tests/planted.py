"""Pictures and sounds whose files say more than they show: a secret in every place that such files have for one."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image as pillow
from PIL.PngImagePlugin import PngInfo

SECRET = "Pl4nt3d-s3cr3t"
PLACE = 0x5EC2E7A1
"""A degree of a place, over 10^7: as it stands in a file."""

XMP = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{SECRET}</dc:creator></x:xmpmeta>'.encode()
FORMS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF")
SOUNDS = ("WAV", "FLAC", "OGG", "MP3", "AIFF")


def exif() -> bytes:
    """EXIF with Make, ImageDescription, Artist, UserComment, a place, and a small picture."""
    small = io.BytesIO()
    pillow.new("RGB", (16, 16), "magenta").save(small, "JPEG", comment=SECRET.encode())
    text, comment = SECRET.encode() + b"\0", b"ASCII\0\0\0" + SECRET.encode()
    place = struct.pack("<6I", PLACE, 10**7, 0, 1, 0, 1)
    blobs = [text, comment, place, small.getvalue()]
    base = 8 + (2 + 5 * 12 + 4) + (2 + 12 + 4) + (2 + 2 * 12 + 4) + (2 + 2 * 12 + 4)
    at = [base + sum(map(len, blobs[:number])) for number in range(len(blobs))]
    sub = 8 + 2 + 5 * 12 + 4
    gps, first = sub + 18, sub + 18 + 30
    ascii, long = 2, 4
    main = [(tag, ascii, len(text), at[0]) for tag in (0x010E, 0x010F, 0x013B)]
    return (
        b"Exif\0\0II*\0"
        + struct.pack("<I", 8)
        + directory([*main, (0x8769, long, 1, sub), (0x8825, long, 1, gps)], first)
        + directory([(0x9286, 7, len(comment), at[1])])
        + directory([(1, ascii, 2, ord("N")), (2, 5, 3, at[2])])
        + directory([(0x0201, long, 1, at[3]), (0x0202, long, 1, len(blobs[3]))])
        + b"".join(blobs)
    )


def directory(entries: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + rows + struct.pack("<I", following)


def picture(form: str, image: pillow.Image) -> bytes:
    """A picture with the secret in every place that its form has."""
    options: dict[str, Any] = {"exif": exif(), "xmp": XMP}
    if form == "JPEG":
        options |= {"comment": SECRET.encode()}
    if form == "PNG":
        info = PngInfo()
        info.add_text("Author", SECRET)
        info.add_text("Comment", SECRET, zip=True)
        info.add_itxt("Title", SECRET)
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options = {"pnginfo": info, "exif": exif()}
    if form == "GIF":
        options = {"comment": SECRET.encode()}
    if form == "TIFF":
        options = {"tiffinfo": {270: SECRET, 271: SECRET, 315: SECRET, 700: XMP}}
    file = io.BytesIO()
    image.save(file, form, **options)
    data = file.getvalue()
    if form == "JPEG":  # IPTC: by whom
        name = b"\x1c\x02\x50" + struct.pack(">H", len(SECRET)) + SECRET.encode()
        block = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(name)) + name + b"\0" * (len(name) % 2)
        data = data[:2] + b"\xff\xed" + struct.pack(">H", len(block) + 2) + block + data[2:]
    return data


def sound(form: str, samples: Any, rate: int) -> bytes:
    """A sound with the secret in its tags."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, format=form) as opened:
        for tag in ("title", "artist", "comment"):
            setattr(opened, tag, SECRET)
        opened.write(samples)
    data = file.getvalue()
    if form == "MP3":
        frames = b"".join(
            name + len(body).to_bytes(4, "big") + b"\0\0" + body
            for name, body in [
                (b"TPE1", b"\0" + SECRET.encode()),
                (b"TIT2", b"\1" + SECRET.encode("utf-16")),
                (b"APIC", b"\0image/jpeg\0\3\0" + picture("JPEG", pillow.new("RGB", (16, 16)))),
            ]
        )
        size = bytes(len(frames) >> shift & 127 for shift in (21, 14, 7, 0))
        data = b"ID3\3\0\0" + size + frames + data + b"TAG" + SECRET.encode().ljust(125, b"\0")
    return data


def told(data: bytes) -> bool:
    """Whether bytes hold the secret, the place, or a text that holds them in base64; also within data URIs."""
    return any(needle in data for needle in _NEEDLES) or any(told(inner) for inner in data_uris(data))


def _in_base64(secret: bytes) -> Iterator[bytes]:
    """What of its base64 tells it, wherever it begins."""
    for shift in range(3):
        start, end = -(-4 * shift // 3), 4 * (shift + len(secret)) // 3
        yield base64.b64encode(bytes(shift) + secret)[start:end]


_NEEDLES = [SECRET.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
_NEEDLES += [*_in_base64(SECRET.encode()), PLACE.to_bytes(4, "little"), PLACE.to_bytes(4, "big")]


def data_uris(data: bytes) -> list[bytes]:
    return [base64.b64decode(found) for found in re.findall(rb"data:[\w/+.-]+;base64,([\w+/=]+)", data)]


def contents(root: Path) -> Iterator[tuple[str, bytes]]:
    """The bytes of each file of a data set; of tables, whose columns are compressed, their values as well."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield str(path), path.read_bytes()
            if path.suffix == ".parquet":
                yield str(path), _values(pq.read_table(path))
            if path.suffix == ".arrow":
                yield str(path), _values(pa.ipc.open_file(path).read_all())


def _values(table: pa.Table) -> bytes:
    rows = table.to_pylist()
    return json.dumps(rows, ensure_ascii=False, default=lambda value: value.decode("latin-1")).encode(
        "latin-1", "replace"
    )
