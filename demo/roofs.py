"""Pictures of seven roof materials, drawn with integers only.

Integers give the same pixels on every processor and operating system; floating-point functions such as sines may
not. Each picture is drawn at twice its size and averaged down, to smooth its edges.

A picture in progress is an integer array (height, width, 3). A shade is a factor in 256ths: 256 leaves a colour
unchanged, 128 halves it, 300 brightens it.
"""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator

SIZES = (  # width and height: landscape, portrait and square
    (640, 480),
    (384, 384),
    (320, 480),
    (600, 300),
    (270, 360),
    (512, 512),
    (450, 360),
    (400, 600),
    (540, 405),
    (300, 300),
    (660, 440),
)


def draw_roof(label: str, number: int) -> np.ndarray:
    """Draw picture `number` (1, 2, …) of a class, always the same: uint8, (height, width, 3)."""
    kind = list(DRAWERS).index(label)
    rng = np.random.default_rng([kind, number])
    width, height = SIZES[(3 * kind + number) % len(SIZES)]
    canvas = DRAWERS[label](rng, 2 * height, 2 * width)
    canvas = shade(canvas, daylight(rng, 2 * height, 2 * width))
    canvas = canvas.reshape(height, 2, width, 2, 3).sum(axis=(1, 3)) // 4
    grain = int(rng.integers(2, 7))
    canvas += rng.integers(-grain, grain + 1, canvas.shape)
    return canvas.clip(0, 255).astype(np.uint8)


# The seven materials


def draw_terracotta(rng: Generator, height: int, width: int) -> np.ndarray:
    """Beaver-tail tiles: round at the lower end, every other row shifted by half a tile."""
    tile = int(rng.integers(84, 125))
    course = tile * 3 // 4
    tiles = lay_tiles(rng, height, width, course, tile, rounding=tile * 2 // 5)
    canvas = paint_tiles(rng, tiles, vary(rng, (190, 98, 64), 14), light=24, tint=5)
    # a tile is a little domed, and the light comes from the left
    dome = tiles.across * (tile - tiles.across) * 280 // (tile * tile)
    canvas = shade(canvas, 180 + dome + (tile // 2 - tiles.across) * 36 // tile)
    canvas = shade(canvas, 232 + noise(rng, height, width, 20) * 44 // 255)
    return cast_shadows(canvas, tiles, gap=3, shadow=tile // 7)


def draw_slate(rng: Generator, height: int, width: int) -> np.ndarray:
    """Split stone from grey to blue, each piece cut to a slightly different length."""
    tile = int(rng.integers(88, 140))
    course = tile * int(rng.integers(80, 110)) // 100
    tiles = lay_tiles(rng, height, width, course, tile, raggedness=course // 12)
    canvas = paint_tiles(rng, tiles, vary(rng, (102, 118, 140), 10), light=36, tint=4)
    cleft = noise(rng, height, width, 40, 10) + noise(rng, height, width, 12, 5)
    canvas = shade(canvas, 196 + cleft * 100 // 510)
    return cast_shadows(canvas, tiles, gap=4, shadow=9)


def draw_metal(rng: Generator, height: int, width: int) -> np.ndarray:
    """Long smooth sheets joined by upright seams, each a bright edge beside its shadow."""
    sheet = int(rng.integers(120, 200))
    x = np.arange(width) + int(rng.integers(sheet))
    number, across = x // sheet, x % sheet
    canvas = fill(height, width, vary(rng, (134, 156, 174), 16))
    reflection = noise(rng, height, width, 4 * sheet, 2 * sheet) * 70 // 255
    brushed = noise(rng, height, width, 240, 3) * 14 // 255
    sheet_light = rng.integers(-10, 11, number.max() + 1)[number]
    canvas = shade(canvas, 206 + reflection + brushed + sheet_light + across * 28 // sheet)
    seam = np.full(sheet, 256)
    seam[:32] = np.repeat((170, 210, 320, 370, 350, 310, 260, 130, 90, 100, 130, 160, 190, 215, 235, 248), 2)
    return shade(canvas, seam[across])


def draw_green_roof(rng: Generator, height: int, width: int) -> np.ndarray:
    """Sedum: thousands of small round leaves over earth, some of them flowers."""
    canvas = shade(fill(height, width, (74, 66, 44)), 200 + noise(rng, height, width, 9) * 80 // 255)
    leaf = int(rng.integers(7, 11))
    greens = [vary(rng, green, 12) for green in ((58, 98, 36), (84, 128, 46), (124, 158, 60), (150, 170, 84))]
    flower = ((226, 200, 70), (214, 120, 150), (236, 232, 214))[int(rng.integers(3))]
    patches = noise(rng, height, width, 150)
    for _ in range(height * width * 5 // (4 * leaf * leaf)):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        radius = int(rng.integers(leaf * 2 // 3, leaf * 4 // 3))
        patch, chance = int(patches[y, x]), int(rng.integers(256))
        flowers = patch > 140 and chance < 8  # in groups
        colour = flower if flowers else greens[(patch + chance) // 128]
        add_leaf(canvas, y, x, radius, colour, light=int(rng.integers(150, 290)))
    return canvas


def draw_asphalt(rng: Generator, height: int, width: int) -> np.ndarray:
    """Shingles cut into tabs: nearly black, rough with mineral granules."""
    tab = int(rng.integers(140, 190))
    course = tab * 9 // 16
    tiles = lay_tiles(rng, height, width, course, tab)
    canvas = paint_tiles(rng, tiles, vary(rng, (74, 70, 68), 8), light=10, tint=1)
    granules = noise(rng, height, width, 5) + noise(rng, height, width, 3)
    canvas = shade(canvas, 40 + granules * 440 // 510)
    return cast_shadows(canvas, tiles, gap=5, shadow=14)


def draw_thatch(rng: Generator, height: int, width: int) -> np.ndarray:
    """Layers of straw, each hanging over the one below with a ragged edge."""
    layer = int(rng.integers(170, 280))
    straw = vary(rng, (190, 150, 84), 14)
    lean = int(rng.integers(-16, 17))
    canvas = fill(height, width, (96, 70, 38))
    wave = noise(rng, 1, width, layer, layer)[0] * layer // 1200
    for edge in range(height + layer, 0, -layer):  # from the eaves up: an upper layer covers the lower one
        below = np.arange(height)[:, None] - edge - wave
        shadow = np.where((below >= 0) & (below < 40), 120 + below * 3, 256)
        canvas = shade(canvas, shadow)
        add_straws(canvas, rng, straw, edge - layer * 5 // 4, edge, wave, lean)
    return canvas


def draw_membrane(rng: Generator, height: int, width: int) -> np.ndarray:
    """Wide white sheets, welded where they overlap, a little dusty."""
    sheet = int(rng.integers(240, 380))
    canvas = fill(height, width, vary(rng, (232, 234, 233), 6))
    dust = noise(rng, height, width, 170) + noise(rng, height, width, 40) // 3
    canvas = shade(canvas, 266 - dust * 30 // 340)
    weld = np.full(sheet, 256)
    weld[:4] = 184  # the edge of the upper sheet
    weld[4:14] = 230  # its shadow
    weld[40:44] = 238  # where the weld ends
    wrinkles = noise(rng, height, width, 90) * 10 // 255
    y = np.arange(height)[:, None] + int(rng.integers(sheet)) + wrinkles
    return shade(canvas, weld[y % sheet])


DRAWERS = {
    "terracotta tiles": draw_terracotta,
    "slate": draw_slate,
    "standing-seam metal": draw_metal,
    "green roof": draw_green_roof,
    "asphalt shingles": draw_asphalt,
    "thatch": draw_thatch,
    "white membrane": draw_membrane,
}


# Colour and light


def vary(rng: Generator, colour: tuple[int, int, int], amount: int) -> np.ndarray:
    """A colour close to this one, lighter or darker, and shifted a little in hue."""
    light = rng.integers(-amount, amount + 1)
    tint = rng.integers(-amount // 2, amount // 2 + 1, 3)
    return np.array(colour) + light + tint


def fill(height: int, width: int, colour: np.ndarray | tuple[int, int, int]) -> np.ndarray:
    """A canvas of one colour."""
    return np.tile(np.array(colour), (height, width, 1))


def shade(canvas: np.ndarray, shades: np.ndarray) -> np.ndarray:
    """The canvas with each pixel multiplied by its shade, in 256ths."""
    return canvas * shades[..., None] // 256


def noise(rng: Generator, height: int, width: int, tall: int, wide: int | None = None) -> np.ndarray:
    """Soft blotches from 0 to 255: random values `tall` and `wide` pixels apart, interpolated."""
    wide = wide or tall
    lattice = rng.integers(256, size=(height // tall + 2, width // wide + 2))
    row, down = np.divmod(np.arange(height)[:, None], tall)
    column, right = np.divmod(np.arange(width), wide)
    upper = lattice[row, column] * (wide - right) + lattice[row, column + 1] * right
    lower = lattice[row + 1, column] * (wide - right) + lattice[row + 1, column + 1] * right
    return (upper * (tall - down) + lower * down) // (tall * wide)


def daylight(rng: Generator, height: int, width: int) -> np.ndarray:
    """Shades that change slowly from corner to corner."""
    brightness = int(rng.integers(-14, 15))
    return 226 + brightness + noise(rng, height, width, height, width) * 60 // 255


# Tiles


class Tiles(NamedTuple):
    """For each pixel: the tile that covers it, and where on the tile it lies."""

    row: np.ndarray
    column: np.ndarray
    across: np.ndarray  # pixels from the tile's left side
    below_edge: np.ndarray  # pixels below the edge of the tile above


def lay_tiles(
    rng: Generator, height: int, width: int, course: int, tile: int, rounding: int = 0, raggedness: int = 0
) -> Tiles:
    """Rows of tiles, `course` pixels apart, `tile` pixels wide, each row shifted by half a tile.

    A tile reaches over the row below it: by up to `rounding` pixels in its middle, and by up to `raggedness`
    more, which differs from tile to tile.
    """
    y, x = np.indices((height, width))
    y += int(rng.integers(course))
    x += int(rng.integers(tile))
    row = y // course + 1
    extra = rng.integers(raggedness + 1, size=(row.max() + 1, width // tile + 3))

    def overhang(row: np.ndarray) -> np.ndarray:
        column, across = np.divmod(x + row % 2 * (tile // 2), tile)
        return rounding * 4 * across * (tile - across) // (tile * tile) + extra[row, column]

    below_edge = y % course - overhang(row - 1)
    covered = below_edge < 0  # by a tile of the row above
    row = row - covered
    column, across = np.divmod(x + row % 2 * (tile // 2), tile)
    return Tiles(row, column, across, np.where(covered, course, below_edge))


def paint_tiles(rng: Generator, tiles: Tiles, colour: np.ndarray, light: int, tint: int) -> np.ndarray:
    """A canvas of tiles: each differs from `colour` in lightness by up to `light`, in hue by up to `tint`."""
    shape = (tiles.row.max() + 1, tiles.column.max() + 1)
    lights = rng.integers(-light, light + 1, (*shape, 1))
    tints = rng.integers(-tint, tint + 1, (*shape, 3))
    return (colour + lights + tints)[tiles.row, tiles.column]


def cast_shadows(canvas: np.ndarray, tiles: Tiles, gap: int, shadow: int) -> np.ndarray:
    """Dark gaps between the tiles of a row, and a soft shadow below the row above."""
    canvas = shade(canvas, np.where(tiles.across < gap, 120, 256))
    return shade(canvas, 100 + 156 * np.minimum(tiles.below_edge, shadow) // shadow)


# Plants


def add_leaf(canvas: np.ndarray, y: int, x: int, radius: int, colour: np.ndarray, light: int) -> None:
    """Paint a disc onto the canvas, bright at its upper left and dark at its lower right."""
    top, left = max(y - radius, 0), max(x - radius, 0)
    part = canvas[top : y + radius + 1, left : x + radius + 1]
    down = np.arange(top - y, top - y + part.shape[0])[:, None]
    right = np.arange(left - x, left - x + part.shape[1])
    inside = down * down + right * right <= radius * radius
    shades = light - (down + right) * 50 // radius
    part[inside] = shade(np.array(colour), shades)[inside]


def add_straws(
    canvas: np.ndarray, rng: Generator, colour: np.ndarray, top: int, edge: int, wave: np.ndarray, lean: int
) -> None:
    """Paint thin strokes onto the canvas that end near `edge`, the lower end of a layer."""
    height, width, _ = canvas.shape
    length = 110
    count = (edge - top) * width // 40
    x = rng.integers(width, size=count)
    y = rng.integers(top, edge - length + 1, count) + wave[x] + rng.integers(-8, 9, count)
    slope = lean + rng.integers(-12, 13, count)
    straws = shade(colour + rng.integers(-12, 13, (count, 3)), rng.integers(120, 340, count))
    for step in range(length):
        down, right = y + step, (x + slope * step // length) % width
        seen = (down >= 0) & (down < height)
        for thickness in (0, 1):
            canvas[down[seen], (right[seen] + thickness) % width] = straws[seen]
