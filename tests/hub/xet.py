"""hf_xet keeps what it uploads in a folder when the store's address is `local:///folder`."""

import struct
from pathlib import Path

RECORD = 48  # bytes: every entry of a shard is this long
LAST = b"\xff" * 32  # the hash that ends a shard's list of files
HAS_PROOFS, HAS_SHA256 = 1 << 31, 1 << 30


def stored_files(cas: Path) -> dict[str, tuple[str, int]]:
    """For each stored file its SHA-256, with the hash that xet knows it by and its size in bytes.

    A commit names a file by its SHA-256 alone; the real Hub finds the rest in the shards too.
    """
    found = {}
    for shard in (cas / "xet" / "xorbs" / "shards").glob("*.mdb"):
        data = shard.read_bytes()
        at = RECORD  # after the shard's header
        while (name := data[at : at + 32]) != LAST:
            flags, segments = struct.unpack_from("<2I", data, at + 32)
            at += RECORD
            sizes = [struct.unpack_from("<I", data, at + RECORD * i + 36)[0] for i in range(segments)]
            at += RECORD * segments * (2 if flags & HAS_PROOFS else 1)
            if flags & HAS_SHA256:
                found[_hex(data[at : at + 32])] = (_hex(name), sum(sizes))
                at += RECORD
    return found


def read_file(cas: Path, xet_hash: str, size: int, target: Path) -> None:
    """Put a stored file together again."""
    import hf_xet

    with hf_xet.XetSession().new_file_download_group(endpoint=address(cas)) as group:
        group.start_download_file(hf_xet.XetFileInfo(xet_hash, size), str(target))


def address(cas: Path) -> str:
    """The store's address, as the Hub tells it to a client."""
    return f"local://{cas.as_posix()}"


def _hex(raw: bytes) -> str:
    """xet writes a hash as four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))
