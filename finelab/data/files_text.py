"""The text of a file in chunks of UTF-8: decompressed, and without a byte-order mark."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

CHUNK = 2**18  # bytes
LONGEST_ROW = 64 * 2**20  # bytes of a line, characters of an array's element
TOO_LONG = f"longer than {LONGEST_ROW // 2**20} MB"
UTF8_HINT = "; save the file as UTF-8"
NUL_HINT = f"; it holds NUL bytes, perhaps UTF-16 without a byte-order mark{UTF8_HINT}"
Parsed = tuple[Any, str | None]  # a row's value, or its raw text and why it cannot be read

_MARKS = {b"\x1f\x8b": ".gz", b"(\xb5/\xfd": ".zst", b"PAR1": ".parquet"}
# bytes read at a time: gzip packs at most 1,000 in one, zstd 32,000; a damaged block is lost
_BLOCKS = {"gzip": 4096, "zstd": 512}


class Unreadable(Exception):
    """Why not one row of a file can be read."""


class BreaksOff(Exception):
    """Why and where a file stops being readable; the rows before it are whole."""


def utf8_chunks(path: Path, compression: str | None) -> Iterator[bytes]:
    """The text of `path` as UTF-8, whatever it was; `compression` is None, "gzip" or "zstd".

    Raises BreaksOff where a compressed stream is cut or damaged, after the text before it.
    """
    with path.open("rb") as file:
        chunks = _decompressed(file, compression) if compression else iter(lambda: file.read(CHUNK), b"")
        first = next(chunks, b"")
        for mark, suffix in _MARKS.items():
            if first.startswith(mark):
                raise Unreadable(f"it holds {suffix} data; end the file's name in {suffix}")
        for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
            if first.startswith(mark):
                # a lone surrogate is passed on, to be the fault of its row and not of the file
                decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
                yield _transcoded(decoder, first[len(mark) :])
                yield from (_transcoded(decoder, chunk) for chunk in chunks)
                return
        yield first.removeprefix(codecs.BOM_UTF8)
        yield from chunks


def lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The lines without their newline; one longer than LONGEST_ROW is cut, but stays longer than that."""
    start = bytearray()
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        if whole:
            start += whole[0]
            yield bytes(start)
            yield from whole[1:]
            start = bytearray(rest)
        elif len(start) <= LONGEST_ROW:
            start += rest
    if start:
        yield bytes(start)


def excerpt(raw: bytes) -> str:
    """At most 2,000 characters of a row that cannot be read, to be shown."""
    return raw[:2000].decode("utf-8", "replace")


def _decompressed(file: IO[bytes], compression: str) -> Iterator[bytes]:
    stream, text, total, fault = _decompressor(compression), bytearray(), 0, ""
    while not fault and (block := file.read(_BLOCKS[compression])):
        try:
            while block:
                if stream.eof:  # several streams may stand one behind the other
                    stream = _decompressor(compression)
                text += stream.decompress(block)
                block = stream.unused_data
        except (zlib.error, zstandard.ZstdError) as error:
            fault = str(error)
        if len(text) >= CHUNK:
            yield bytes(text)
            total += len(text)
            text.clear()
    yield bytes(text)
    if fault or not stream.eof:
        where = f"after {total + len(text):,} bytes of text"
        raise BreaksOff(f"the {compression} stream breaks off {where} ({fault or 'it is cut'})")


def _decompressor(compression: str) -> Any:
    if compression == "gzip":
        return zlib.decompressobj(wbits=zlib.MAX_WBITS + 16)  # with gzip's header and checksum
    return zstandard.ZstdDecompressor().decompressobj()


def _transcoded(decoder: codecs.IncrementalDecoder, chunk: bytes) -> bytes:
    return decoder.decode(chunk).encode("utf-8", "surrogatepass")
