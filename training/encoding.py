"""What a file holds that is not UTF-8, and the command that makes text of it."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

SAMPLE = 1 << 16
MAGIC = {  # first bytes: what it is, and the command that unpacks it
    b"\x1f\x8b": ("compressed with gzip", "gzip -dc"),
    b"BZh": ("compressed with bzip2", "bzip2 -dc"),
    b"\xfd7zXZ": ("compressed with xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "zstd -dc"),
    b"PK\x03\x04": ("a zip archive", "unzip -p"),
    b"%PDF": ("a PDF", "pdftotext"),
}
BYTE_ORDER_MARKS = {  # UTF-32's first: it begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def explain_bytes(path: Path) -> str:
    """Why ``path`` is not read as UTF-8, in one line that ends with a command to put it right."""
    offset, data = find_error(path)
    file = shlex.quote(str(path))
    for magic, (what, command) in MAGIC.items():
        if data.startswith(magic):
            return f"{path} is not text: it is {what}; unpack it: {command} {file} > new.txt"
    encoding = guess_encoding(data)
    if encoding is None:
        return f"{path} is UTF-8 that is damaged at byte {offset}; leave out what is damaged: iconv -c -f UTF-8 -t UTF-8 {file} > new.txt"
    return f"{path} is not UTF-8 (byte {offset}) but looks like {encoding}; convert it: iconv -f {encoding} -t UTF-8 {file} > new.txt"


def find_error(path: Path) -> tuple[int, bytes]:
    """Where UTF-8 ends, and some bytes to guess from: the beginning of the file and what stands around that place."""
    decoder, before = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        begin = file.read(SAMPLE)
        file.seek(0)
        while data := file.read(SAMPLE):
            try:
                decoder.decode(data)
            except UnicodeDecodeError as error:
                at = before + len(data) - len(error.object) + error.start
                return at, begin if at < SAMPLE else begin + error.object
            before += len(data)
    return before, begin


def guess_encoding(data: bytes) -> str | None:
    """A name that iconv knows, or None for UTF-8 with some damage in it."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return encoding
    if wide := wide_encoding(data):
        return wide
    replaced = data.decode("utf-8", "replace")
    errors, others = replaced.count("\ufffd"), sum(c > "\x7f" and c != "\ufffd" for c in replaced)
    if others > 4 * errors:
        return None
    return "WINDOWS-1252" if not any(byte in data for byte in b"\x81\x8d\x8f\x90\x9d") else "ISO-8859-1"


def wide_encoding(data: bytes) -> str | None:
    """UTF-16 without a byte order mark: every other byte of most texts is zero."""
    pairs = max(1, len(data) // 2)
    if data[1::2].count(0) > 0.4 * pairs:
        return "UTF-16LE"
    return "UTF-16BE" if data[0::2].count(0) > 0.4 * pairs else None
