"""The content-addressed store behind Xet, as far as `hf_xet` calls it (formats: huggingface.co/docs/xet).

A client cuts files into chunks, sends them in xorbs, and then a shard, which says of which chunks each file is made.
Chunks must come uncompressed: `HF_XET_XORB_COMPRESSION_POLICY=none`.
"""

import hashlib
import json
import re
import struct
from dataclasses import dataclass, field
from typing import Any

_ENTRY = 48  # bytes of each entry of a shard, and of its header
_VERIFIED, _WITH_METADATA = 1 << 31, 1 << 30  # flags of a file
_END = b"\xff" * 32


@dataclass
class Segment:
    """Chunks `first` to `last - 1` of a xorb."""

    xorb: str
    length: int
    first: int
    last: int


@dataclass
class XetStore:
    xorbs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, list[Segment]] = field(default_factory=dict)
    """By the Xet hash of the file."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Xet hash of each file by its SHA-256."""

    def answer(self, request: str, body: bytes, url: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for `METHOD path` below `url`; 404 sends the client to an older route."""
        if xorb := re.fullmatch(r"POST /v1/xorbs/default/(\w+)", request):
            self.xorbs[xorb[1]] = body
            return _json({"was_inserted": True})
        if request == "POST /v1/shards":
            self._read_shard(body)
            return _json({"result": 1})
        if wanted := re.fullmatch(r"GET /v1/reconstructions/(\w+)", request):
            return _json(self._reconstruction(wanted[1], url))
        if xorb := re.fullmatch(r"GET /xorbs/(\w+)", request):
            start, end = re.fullmatch(r"bytes=(\d+)-(\d+)", headers["Range"]).groups()  # type: ignore[union-attr]
            content = self.xorbs[xorb[1]][int(start) : int(end) + 1]
            return 206, {"Content-Range": f"bytes {start}-{end}/{len(self.xorbs[xorb[1]])}"}, content
        return _json({}, 404)

    def content(self, sha256: str) -> bytes | None:
        """The file with this SHA-256, if it is here."""
        if sha256 not in self.hashes:
            return None
        segments = self.files[self.hashes[sha256]]
        content = b"".join(b"".join(_chunks(self.xorbs[s.xorb])[s.first : s.last]) for s in segments)
        assert hashlib.sha256(content).hexdigest() == sha256
        return content

    def _read_shard(self, shard: bytes) -> None:
        position = _ENTRY
        while shard[position : position + 32] != _END:
            file = _hex(shard[position : position + 32])
            flags, count = struct.unpack_from("<II", shard, position + 32)
            position += _ENTRY
            self.files[file] = []
            for _ in range(count):
                xorb, (length, first, last) = shard[position:][:32], struct.unpack_from("<III", shard, position + 36)
                self.files[file].append(Segment(_hex(xorb), length, first, last))
                position += _ENTRY
            position += count * _ENTRY if flags & _VERIFIED else 0
            if flags & _WITH_METADATA:
                self.hashes[_hex(shard[position : position + 32])] = file
                position += _ENTRY

    def _reconstruction(self, file: str, url: str) -> dict[str, Any]:
        terms, fetch = [], {}
        for segment in self.files[file]:
            chosen = {"start": segment.first, "end": segment.last}
            terms.append({"hash": segment.xorb, "unpacked_length": segment.length, "range": chosen})
            sizes = [len(chunk) + 8 for chunk in _chunks(self.xorbs[segment.xorb])]
            place = {"start": sum(sizes[: segment.first]), "end": sum(sizes[: segment.last]) - 1}
            fetch.setdefault(segment.xorb, []).append(
                {"range": chosen, "url": f"{url}/xorbs/{segment.xorb}", "url_range": place}
            )
        return {"offset_into_first_range": 0, "terms": terms, "fetch_info": fetch}


def _chunks(xorb: bytes) -> list[bytes]:
    chunks, position = [], 0
    while position < len(xorb) and xorb[position] == 0:  # version 0; a footer starts with a letter
        scheme, size = xorb[position + 4], int.from_bytes(xorb[position + 1 : position + 4], "little")
        assert scheme == 0, "the chunks are compressed"
        chunks.append(xorb[position + 8 : position + 8 + size])
        position += 8 + size
    return chunks


def _hex(digest: bytes) -> str:
    """Hashes are written as four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def _json(content: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()
