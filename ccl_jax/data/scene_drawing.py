"""Scenes: what is in one, and how it is drawn.

A scene holds one to four objects (colour x shape x size x texture) placed freely and
without overlap on a grey, cluttered background. Everything is a function of a
`random.Random`, so a scene is reproducible from a seed. (For single draws it is several
times faster than a NumPy generator, which serves for the pixel noise.)
"""

import dataclasses
import functools
import math
import random

import numpy as np

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 225),
    "yellow": (235, 215, 50),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "cyan": (60, 205, 215),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "moon")
SIZES = {"small": 0.125, "large": 0.21}  # radius, as a share of the image's side
TEXTURES = ("plain", "striped", "dotted")
COLOR_NAMES = tuple(COLORS)
SIZE_NAMES = tuple(SIZES)

# One colour per shape, and one shape per colour, is kept out of training.
HELD_OUT = frozenset((COLOR_NAMES[(3 * i + 1) % 8], shape) for i, shape in enumerate(SHAPES))


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object; `x`, `y` is its centre and `radius` its half extent, in pixels."""

    color: str
    shape: str
    size: str
    texture: str
    x: int
    y: int
    radius: int


def sample_objects(
    rng: random.Random, image_size: int, pairs: list[tuple[str, str]], *, lattice: int = 1
) -> tuple[SceneObject, ...]:
    """Gives each (colour, shape) of `pairs` a size, a texture and a place that is free.

    Args:
      rng: source of randomness.
      image_size: side of the square image in pixels.
      pairs: (colour, shape) of every object.
      lattice: pixels between places; 1 for any place at all.
    """
    while True:
        placed: list[SceneObject] = []
        for color, shape in pairs:
            size = rng.choice(SIZE_NAMES)
            texture = rng.choice(TEXTURES)
            radius = round(SIZES[size] * image_size)
            for _ in range(20):
                x, y = (rng.randrange(radius, image_size - radius + 1, lattice) for _ in range(2))
                if all(
                    max(abs(x - o.x), abs(y - o.y)) > radius + o.radius
                    or math.hypot(x - o.x, y - o.y) > 1.15 * (radius + o.radius)
                    for o in placed
                ):
                    placed.append(SceneObject(color, shape, size, texture, x, y, radius))
                    break
            else:
                break  # crowded: begin again with other places
        if len(placed) == len(pairs):
            return tuple(placed)


def sample_pairs(rng: random.Random, count: int, *, held_out: bool) -> list[tuple[str, str]]:
    """Draws `count` distinct (colour, shape) pairs.

    Args:
      rng: source of randomness.
      count: number of objects.
      held_out: whether the first pair is one of `HELD_OUT`; the others never are.
    """
    pairs: list[tuple[str, str]] = []
    if held_out:
        pairs.append(rng.choice(sorted(HELD_OUT)))
    while len(pairs) < count:
        pair = (rng.choice(COLOR_NAMES), rng.choice(SHAPES))
        if pair not in HELD_OUT and pair not in pairs:
            pairs.append(pair)
    rng.shuffle(pairs)
    return pairs


def draw_scene(
    rng: random.Random, objects: tuple[SceneObject, ...], image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Paints the objects over a cluttered background.

    Returns:
      The image, (image_size, image_size, 3) uint8, and the instance mask,
      (image_size, image_size) uint8: 0 for background, k for `objects[k - 1]`.
    """
    image = _background(rng, image_size)
    mask = np.zeros((image_size, image_size), np.uint8)
    for index, obj in enumerate(objects):
        coverage = _coverage(obj.shape, obj.radius)
        shade = _texture(obj.texture, obj.radius)
        top, left = obj.y - obj.radius, obj.x - obj.radius
        window = (slice(top, top + 2 * obj.radius), slice(left, left + 2 * obj.radius))
        jitter = [channel + rng.uniform(-12, 12) for channel in COLORS[obj.color]]
        paint = np.float32(jitter) * shade[..., None]
        image[window] += coverage[..., None] * (paint - image[window])
        mask[window][coverage > 0.5] = index + 1
    noise = np.random.default_rng(rng.getrandbits(63))
    image += 4.0 * noise.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def _background(rng: random.Random, size: int) -> np.ndarray:
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    level = rng.uniform(70, 130)
    slope_x, slope_y = rng.uniform(-20, 20), rng.uniform(-20, 20)
    grey = level + slope_x * ramp[None, :] + slope_y * ramp[:, None]
    for _ in range(rng.randint(3, 7)):  # grey slabs, thin or blocky
        height, width = rng.randint(1, size // 6), rng.randint(1, size // 6)
        if rng.random() < 0.5:
            height, width = rng.choice([(1, size // 3), (size // 3, 1)])
        y, x = rng.randint(0, size - height), rng.randint(0, size - width)
        grey[y : y + height, x : x + width] += rng.uniform(-30, 30)
    return np.repeat(grey[..., None], 3, axis=2)


@functools.cache
def _grid(radius: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(2 * radius) + 0.5) / radius - 1.0
    return np.meshgrid(axis, axis)  # x to the right, y downwards, in (-1, 1)


@functools.cache
def _coverage(shape: str, radius: int) -> np.ndarray:
    """Share of each pixel that the shape covers, (2 radius, 2 radius) float32."""
    step = np.array([-0.375, -0.125, 0.125, 0.375]) / radius
    x, y = _grid(radius)
    total = np.zeros_like(x)
    for dx in step:
        for dy in step:
            total += _inside(shape, x + dx, y + dy)
    return (total / 16).astype(np.float32)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    r = np.hypot(x, y)
    match shape:
        case "circle":
            return r < 0.95
        case "square":
            return np.maximum(abs(x), abs(y)) < 0.84
        case "triangle":
            return (y < 0.8) & (abs(x) < (y + 0.95) * 0.55)
        case "diamond":
            return abs(x) * 1.35 + abs(y) < 1.0
        case "cross":
            return (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.95)
        case "ring":
            return (r < 0.97) & (r > 0.55)
        case "star":
            # Polar form of a pentagram: 0 at an inner corner, 1 at a tip.
            tip = abs(np.mod(np.arctan2(x, -y), 2 * np.pi / 5) - np.pi / 5) / (np.pi / 5)
            return r < 0.41 / np.cos(np.pi / 5 * (1 - tip)) / (1 - 0.59 * tip)
        case "moon":
            return (r < 0.97) & (np.hypot(x - 0.5, y) > 0.75)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


@functools.cache
def _texture(texture: str, radius: int) -> np.ndarray:
    """Factor on the colour, (2 radius, 2 radius) float32."""
    rows, cols = np.mgrid[: 2 * radius, : 2 * radius]
    match texture:
        case "plain":
            dark = np.zeros_like(rows, bool)
        case "striped":
            dark = (rows + cols) % 4 < 2
        case "dotted":
            dark = (rows % 3 == 1) & (cols % 3 == 1)
        case _:
            raise ValueError(f"unknown texture {texture!r}; known: {', '.join(TEXTURES)}")
    return np.where(dark, 0.4, 1.0).astype(np.float32)
