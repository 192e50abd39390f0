"""Write a PNG file whose bytes depend on its pixels alone.

Pillow compresses with the zlib of the system or of its wheel, and two versions of zlib may compress the same pixels
to different bytes. Here the pixels are stored uncompressed, which every reader of PNG files accepts.
"""

import struct
import zlib
from pathlib import Path

import numpy as np

LARGEST_BLOCK = 65535  # bytes; the length of a stored block is a 16-bit number


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 pixels of shape (height, width, 3)."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, 2: RGB
    # each row begins with the number of its filter, 0: none
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0))).tobytes()
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib_stream(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    """Return one chunk of the file: its length, name, data and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def zlib_stream(data: bytes) -> bytes:
    """Return the data as an uncompressed zlib stream, in stored blocks."""
    blocks = []
    for start in range(0, len(data), LARGEST_BLOCK):
        block = data[start : start + LARGEST_BLOCK]
        last = start + LARGEST_BLOCK >= len(data)
        blocks.append(struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block)
    return b"\x78\x01" + b"".join(blocks) + struct.pack(">I", zlib.adler32(data))
