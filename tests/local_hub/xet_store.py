"""Contents of files that were uploaded by xet.

Clients cut a file into chunks, compress each, and upload them in blocks ("xorbs"); then a shard says which chunks of
which xorbs are the file. The formats: https://huggingface.co/docs/xet. Xorbs are taken at their word (their hashes
are BLAKE3, which the standard library lacks); the file that comes of them must have the SHA-256 of the shard.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow

from tests.local_hub.protocol import HubError
from tests.local_hub.storage import BlobStore


SHARD_HEADER = 48  # bytes, as is each of a shard's entries
ENTRY = 48
NO_MORE_FILES = b"\xff" * 32
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30  # flags of a shard's files
CHUNK_HEADER = 8  # bytes: version, packed size (3), scheme of compression, size (3)
XORB_FOOTER = b"XETBLOB"
UNPACKED, LZ4, GROUPED_LZ4 = range(3)  # schemes


@dataclass(frozen=True)
class Chunk:
    """`start` and `stop` are the bytes of its xorb in which it lies, header and all; `size` is that of its content."""

    start: int
    stop: int
    scheme: int
    size: int


@dataclass(frozen=True)
class Segment:
    """Chunks `first` to before `stop` of a xorb, in sequence a part of a file."""

    xorb: str
    first: int
    stop: int


class XetStore:
    """Xorbs as files of one folder, and which segments of them each file is.

    What is uploaded here goes to the `blobs` too: all that can be downloaded by xet can be downloaded without.
    """

    def __init__(self, folder: Path, blobs: BlobStore):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.blobs = blobs
        self.segments: dict[str, list[Segment]] = {}  # by a file's xet hash
        self.hash_of: dict[str, str] = {}  # a file's xet hash by its SHA-256
        self._chunks: dict[str, list[Chunk]] = {}  # by xorb

    def path(self, xorb: str) -> Path:
        return self.folder / xorb

    def put_xorb(self, xorb: str, content: bytes) -> bool:
        """Whether it was new."""
        is_new = xorb not in self._chunks
        chunks = list(_chunks(content))
        self.path(xorb).write_bytes(content)
        self._chunks[xorb] = chunks
        return is_new

    def put_shard(self, content: bytes) -> None:
        """Put together the files that a shard names; HubError 400 if their chunks are not here, or not those."""
        for file, sha256, segments in _files(content):
            missing = {segment.xorb for segment in segments} - self._chunks.keys()
            if missing:
                raise HubError(400, f"file {file}: xorbs that were never uploaded: {', '.join(sorted(missing))}")
            self.segments[file] = segments
            self.hash_of[self.blobs.put(self._contents(segments), sha256)] = file

    def _contents(self, segments: list[Segment]) -> Iterator[bytes]:
        for segment in segments:
            xorb = self.path(segment.xorb).read_bytes()
            for chunk in self.chunks(segment):
                yield _unpack(xorb[chunk.start + CHUNK_HEADER : chunk.stop], chunk)

    def chunks(self, segment: Segment) -> list[Chunk]:
        return self._chunks[segment.xorb][segment.first : segment.stop]

    def size(self, file: str) -> int:
        return sum(chunk.size for segment in self.segments[file] for chunk in self.chunks(segment))

    def covering(self, file: str, start: int, stop: int) -> tuple[list[Segment], int]:
        """The least chunks that hold bytes `start` to before `stop`, and where in the first of them `start` is."""
        segments, offset, position = [], 0, 0
        for segment in self.segments[file]:
            wanted = []
            for number, chunk in enumerate(self.chunks(segment), segment.first):
                if position < stop and position + chunk.size > start:
                    if not segments and not wanted:
                        offset = start - position
                    wanted.append(number)
                position += chunk.size
            if wanted:
                segments.append(Segment(segment.xorb, wanted[0], wanted[-1] + 1))
        return segments, offset


def without_overlap(segments: list[Segment]) -> list[Segment]:
    """The same chunks, each once."""
    merged: list[Segment] = []
    for segment in sorted(segments, key=lambda segment: (segment.xorb, segment.first)):
        last = merged[-1] if merged else None
        if last and last.xorb == segment.xorb and segment.first < last.stop:
            merged[-1] = Segment(last.xorb, last.first, max(last.stop, segment.stop))
        else:
            merged.append(segment)
    return merged


def _chunks(xorb: bytes) -> Iterator[Chunk]:
    start = 0
    while start < len(xorb) and not xorb.startswith(XORB_FOOTER, start):
        packed, size = (int.from_bytes(xorb[start + at : start + at + 3], "little") for at in (1, 5))
        stop = start + CHUNK_HEADER + packed
        if stop > len(xorb):
            raise HubError(400, f"a xorb's chunk ends at byte {stop} of {len(xorb)}")
        yield Chunk(start, stop, xorb[start + 4], size)
        start = stop


def _unpack(packed: bytes, chunk: Chunk) -> bytes:
    if chunk.scheme == UNPACKED:
        return packed
    content = pyarrow.decompress(packed, chunk.size, codec="lz4", asbytes=True)
    if chunk.scheme == LZ4:
        return content
    if chunk.scheme != GROUPED_LZ4:
        raise HubError(400, f"unknown compression of a chunk: {chunk.scheme}")
    ungrouped, start = bytearray(chunk.size), 0  # first all bytes whose index is a multiple of four, and so on
    for i in range(4):
        count = len(range(i, chunk.size, 4))
        ungrouped[i::4] = content[start : start + count]
        start += count
    return bytes(ungrouped)


def _files(shard: bytes) -> Iterator[tuple[str, str | None, list[Segment]]]:
    """Xet hash, SHA-256 and segments of every file in a shard."""
    start = SHARD_HEADER
    while (file := shard[start : start + 32]) != NO_MORE_FILES:
        flags, count = struct.unpack_from("<II", shard, start + 32)
        start += ENTRY
        segments = []
        for _ in range(count):
            _, _, first, stop = struct.unpack_from("<4I", shard, start + 32)
            segments.append(Segment(_hash(shard[start : start + 32]), first, stop))
            start += ENTRY
        if flags & HAS_VERIFICATION:
            start += ENTRY * count
        sha256 = None
        if flags & HAS_SHA256:
            sha256 = _hash(shard[start : start + 32])
            start += ENTRY
        yield _hash(file), sha256, segments


def _hash(raw: bytes) -> str:
    """Xet's way to write 32 bytes: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))
