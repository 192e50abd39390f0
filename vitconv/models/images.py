"""Read image files within bounds, and draw a sample image for when none is given.

An image file may be hostile or broken. :func:`load_image` reads the formats that photos are kept in, refuses what
would take minutes or gigabytes, and names the file in every error.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vitconv.architecture import MOST_PIXELS
from vitconv.errors import InputError, VitconvError
from vitconv.files import NoRegularFileError, open_file

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pillow's mode for images with 1 or 3 channels. Image files have no other number of channels.
MODES = {1: "L", 3: "RGB"}
#: The most bytes of an image file: more than :data:`MOST_PIXELS` uncompressed pixels have. Some formats are read as a
#: whole.
MOST_BYTES = 2**28


def load_image(source: str | Path | bytes) -> Image:
    """Read an image from a file, or from the bytes of one; of several frames, the first.

    Args:
        source: the path of an image file, or its content. Errors call the latter "The image".

    Raises:
        InputError: there is no such file, Pillow cannot read it, or it is larger than :data:`MOST_PIXELS` or
            :data:`MOST_BYTES`. Its cause is what Pillow or the system said.
    """
    from PIL import Image

    name = "The image" if isinstance(source, bytes) else f"'{source}'"
    try:
        with _open(source) as (raw, size), _Pieces(raw, name) as stream, warnings.catch_warnings():
            if not size:  # this includes system files, which may be endless
                raise _unreadable(name, "it is empty")
            if size > MOST_BYTES:
                raise InputError(f"{name} has {size:,} bytes; at most {MOST_BYTES:,} are allowed.", _SMALLER)
            warnings.simplefilter("ignore")  # about tags that it skips, and about many pixels, which are refused below
            if _count_strips(stream) > _MOST_STRIPS:
                raise InputError(f"{name} is a TIFF with more than {_MOST_STRIPS:,} strips.", "Save it as PNG.")
            with Image.open(stream, formats=_formats()) as image:
                check_size(image, name=name)
                _check_effort(image, stream, name)
                image.load()
                check_size(image, name=name)  # the size in the header may be wrong
                # A copy is without the reader, which for WebP holds the picture three more times. That of a JPEG holds
                # nothing large.
                loaded = image if image.format in ("JPEG", "MPO") else image.copy()
                if not isinstance(source, bytes):
                    loaded.filename = os.fspath(source)  # type: ignore[attr-defined]  # as Image.open sets it
                return loaded
    except FileNotFoundError as error:
        raise InputError(f"There is no image {name}.", "Check the path of the image.") from error
    except (VitconvError, MemoryError):
        raise
    except IsADirectoryError as error:
        raise _unreadable(name, "it is a folder") from error
    except NoRegularFileError as error:
        raise _unreadable(name, f"it is {error.strerror}") from error
    except Image.DecompressionBombError as error:  # before Pillow gives its height and width
        pixels = re.search(r"\d+", str(error))
        count = f"{int(pixels[0]):,}" if pixels else "too many"
        raise InputError(f"{name} has {count} pixels; at most {MOST_PIXELS:,} are allowed.", _SMALLER) from error
    except Exception as error:  # Pillow's readers raise errors of many kinds
        raise _unreadable(name) from error


def pixel_count(content: bytes) -> int:
    """How many pixels an image has, by its header; 0 where Pillow cannot read that.

    Args:
        content: of a file.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=_formats()) as image:
            warnings.simplefilter("ignore")
            return image.width * image.height
    except Exception:  # Pillow's readers raise errors of many kinds
        return 0


@contextmanager
def _open(source: str | Path | bytes) -> Iterator[tuple[Any, int]]:
    """The raw stream of an image, and how many bytes it has."""
    if isinstance(source, bytes):
        yield io.BytesIO(source), len(source)
    else:
        file: Any
        with open_file(source) as file:
            yield file.raw, os.fstat(file.fileno()).st_size


#: Formats of photos that Pillow reads in C, with memory in proportion to the size in the header. An ICNS or
#: ICO file holds pictures of any size, FITS is read into Python's lists, and EPS is a program that Ghostscript runs.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")


@cache
def _formats() -> tuple[str, ...]:
    """Of these formats, those that the installed Pillow reads."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of the files that :func:`load_image` reads, in lower case: ``.jpg``, ``.png``…"""
    from PIL import Image

    formats = _formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


class _Pieces(io.BufferedReader):
    """A file that limits the number of reads, and the bytes in small ones.

    Pillow looks at the parts of a file (chunks, segments, blocks, comments) in Python, one by one, and keeps or joins
    many of them. A photo has a few; 256 MiB of them take minutes and gigabytes.
    """

    def __init__(self, raw: Any, name: str) -> None:
        super().__init__(raw)
        self._name, self._count, self._small = name, 0, 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As :meth:`io.BufferedReader.read`; :class:`InputError` where there are too many."""
        self._count += 1
        self._small += size if size is not None and 0 < size < 2**16 else 0
        if self._count > _MOST_PIECES or self._small > _MOST_SMALL:
            raise InputError(f"{self._name} consists of too many pieces.", "Save it again, as PNG or JPEG.")
        return super().read(size)


_MOST_PIECES = 10**6
_MOST_SMALL = 2**25


def _count_strips(stream: BinaryIO) -> int:
    """The number of strips or tiles that a TIFF states; 0 for any other file. Pillow creates objects for each."""
    start = stream.read(16).ljust(16, b"\0")
    order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
    count = 0
    if order:
        large = 43 in start[2:4]  # BigTIFF
        (offset,) = struct.unpack_from(f"{order}Q" if large else f"{order}I", start, 8 if large else 4)
        entry = struct.Struct(f"{order}HHQ8x" if large else f"{order}HHI4x")
        with suppress(OSError, OverflowError, struct.error):  # Pillow raises the error later
            stream.seek(offset)
            (entries,) = struct.unpack(f"{order}{'Q' if large else 'H'}", stream.read(8 if large else 2))
            directory = stream.read(min(entries, 2**16) * entry.size)
            found = entry.iter_unpack(directory[: len(directory) // entry.size * entry.size])
            count = max((values for tag, _, values in found if tag in _PLACES), default=0)
    stream.seek(0)
    return count


_PLACES = (273, 279, 324, 325)  # tags: where strips and tiles are, and their lengths
_MOST_STRIPS = 2**17


def _check_effort(image: Any, stream: BinaryIO, name: str) -> None:
    """Raise :class:`InputError` if reading the opened image would take minutes, or more memory than its size says."""
    from PIL.Image import DECODERS

    if any(tile[0] in DECODERS for tile in image.tile):  # decoders in Python: a byte takes a microsecond
        raise InputError(f"{name} is a kind of {image.format} that takes too long to read.", "Save it as PNG.")
    pixels = image.width * image.height
    if image.format == "TIFF":
        width, height = (image.tag_v2.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH))
        if width * height > max(pixels, _SMALL_TILE):
            raise InputError(
                f"{name} has tiles of {width}x{height} pixels, which are larger than the image.", "Save it as PNG."
            )
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        stream.seek(0)
        scans = stream.read().count(b"\xff\xda")
        stream.seek(0)
        if scans * pixels > _MOST_SCANNED:
            raise InputError(f"{name} has {scans:,} scans of {pixels:,} pixels each.", "Save it again.")


_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags: TIFF 6.0, section 15
_SMALL_TILE = 2**20
#: A progressive JPEG is decoded as a whole for each scan. Most have about ten scans, but a file can have any number.
_MOST_SCANNED = 16 * MOST_PIXELS
_SMALLER = "Make the image smaller, or crop it."


def _unreadable(name: str, why: str | None = None) -> InputError:
    reason = f": {why}" if why else ""
    return InputError(f"{name} is not an image that can be read{reason}.", "Pass a PNG, JPEG or WebP file.")


def check_size(image: Image, resized: tuple[int, int] | None = None, name: str | None = None) -> None:
    """Raise :class:`InputError` if an image, or an image in the course of its resize, exceeds :data:`MOST_PIXELS`.

    Args:
        image: it need not be loaded.
        resized: (height, width) that it is resized to.
        name: what errors call it; by default :func:`image_name`.
    """
    name = name or image_name(image)
    height, width = image.height, image.width
    if height * width > MOST_PIXELS:
        raise InputError(f"{name} is {width}x{height} pixels; at most {MOST_PIXELS:,} are allowed.", _SMALLER)
    # Pillow resizes the rows first: in between, the picture has the new width and the old height.
    between = (max(resized[0], height), resized[1]) if resized else (0, 0)
    if between[0] * between[1] > MOST_PIXELS:
        raise InputError(
            f"{name} is {width}x{height} pixels, and {between[1]}x{between[0]} while it is resized; at most "
            f"{MOST_PIXELS:,} are allowed.",
            _SMALLER,
        )


def convert_colors(image: Image, num_channels: int) -> Image:
    """The image in Pillow's mode for 1 or 3 channels (:data:`MODES`): itself, if it has this mode.

    Raises:
        InputError: Pillow cannot convert its colours.
    """
    if image.mode == MODES[num_channels]:
        return image
    try:
        return image.convert(MODES[num_channels])
    except ValueError as error:
        raise InputError(
            f"{image_name(image)} has colours ('{image.mode}') that Pillow cannot convert to '{MODES[num_channels]}'.",
            "Save the image in RGB or grey.",
        ) from error


def image_name(image: Image) -> str:
    """The name of an image for the beginning of a sentence: its file, if it has one."""
    file = getattr(image, "filename", "")
    return f"'{os.fspath(file)}'" if file else "The image"


def sample_image(size: tuple[int, int] = (600, 448)) -> Image:
    """A computed image, for when none is given: coloured gradients under a grid of discs.

    It has smooth parts, edges and fine detail, and is the same on every machine.

    Args:
        size: (width, height) in pixels.
    """
    import numpy as np
    from PIL import Image

    width, height = size
    y, x = np.mgrid[:height, :width]
    discs = ((x % 75 - 37) ** 2 + (y % 64 - 32) ** 2) < 500
    stripes = (x // 5 + y // 7) % 2
    red = 255 * x // width
    green = 255 * y // height
    blue = np.where(discs, 220, 40) - 30 * stripes
    red = np.where(discs, 255 - red, red)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype("uint8"), "RGB")
