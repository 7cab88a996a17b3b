"""Signs with words: what they say, in which font and colours, and where each line of text lies."""

import lzma
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from zlib import crc32

from moai.scenes.asset_loading import FONT_FILES, text_extent
from moai.scenes.vocabulary import indefinite, plural

__all__ = ["SPLITS", "SignFace", "SignText", "sample_sign", "sample_sign_text", "sign_words", "split_of_word"]

SPLITS: tuple[str, ...] = ("train", "validation", "test")


# Board and ink colours (RGB) with enough contrast to be read.
_COLOURS: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...] = (
    ((250, 250, 245), (25, 25, 30)),
    ((255, 214, 64), (30, 26, 20)),
    ((178, 32, 38), (255, 250, 240)),
    ((24, 78, 140), (250, 252, 255)),
    ((22, 96, 58), (248, 252, 244)),
    ((34, 36, 40), (255, 224, 130)),
    ((240, 226, 198), (92, 48, 22)),
    ((96, 58, 32), (255, 240, 214)),
)


@dataclass(frozen=True, slots=True)
class SignFace:
    """A board with words.

    Attributes:
        box: (x0, y0, x1, y1) of board and post together, in the unit square.
        board: four corners (x, y) of the board, clockwise from the top left.
        quads: for each line the four corners of its ink, clockwise from the top left.
        lines: the words, one string per line.
        font_index: into `FONT_FILES`.
        font_size: height of the font in parts of the image.
        angle: radians, positive turns clockwise.
        board_colour: RGB.
        ink_colour: RGB.
        on_post: whether it stands on a post.
        claim: the object that a forged sign speaks of.
    """

    box: tuple[float, float, float, float]
    board: tuple[tuple[float, float], ...]
    quads: tuple[tuple[tuple[float, float], ...], ...]
    lines: tuple[str, ...]
    font_index: int
    font_size: float
    angle: float
    board_colour: tuple[int, int, int]
    ink_colour: tuple[int, int, int]
    on_post: bool
    claim: str = ""

    def moved_to(self, dx: float, dy: float) -> "SignFace":
        """The same sign shifted by (dx, dy)."""
        x0, y0, x1, y1 = self.box
        return replace(
            self,
            box=(x0 + dx, y0 + dy, x1 + dx, y1 + dy),
            board=tuple((x + dx, y + dy) for x, y in self.board),
            quads=tuple(tuple((x + dx, y + dy) for x, y in quad) for quad in self.quads),
        )


def split_of_word(word: str) -> str:
    """The only split whose signs may carry a word or number, whatever its case: a hash decides."""
    return ("test", "validation")[number] if (number := crc32(word.lower().encode()) % 10) < 2 else "train"


@cache
def sign_words(split: str) -> tuple[str, ...]:
    """A split's words of three to ten letters, of a list of 34,697 English ones."""
    packed = (Path(__file__).parent / "assets" / "words" / "words.txt.xz").read_bytes()
    return tuple(word for word in lzma.decompress(packed).decode().split("\n") if split_of_word(word) == split)


def _made_up(rng: Random) -> str:
    """A number, or syllables that nobody has seen: who has no word to guess must read letter by letter."""
    if rng.random() < 0.4:
        return str(rng.randint(1, 9999))
    syllables = (rng.choice("bcdfghjklmnprstvwyz") + rng.choice("aeiouy") for _ in range(rng.randint(1, 3)))
    return "".join(syllables) + (rng.choice("dklmnprst") if rng.random() < 0.4 else "")


def _sample_word(rng: Random, split: str, made_up_share: float) -> str:
    if rng.random() >= made_up_share:
        return rng.choice(sign_words(split))
    while split_of_word(word := _made_up(rng)) != split:
        pass
    return word


def _sample_lines(rng: Random, upper: bool, split: str, made_up_share: float) -> tuple[str, ...]:
    words = [_sample_word(rng, split, made_up_share) for _ in range(rng.choices((1, 2, 3), (4, 4, 2))[0])]
    words = [word.upper() if upper else word.capitalize() for word in words]
    if len(words) == 3:
        return words[0], " ".join(words[1:])
    return (" ".join(words),) if rng.random() < 0.6 and sum(map(len, words)) <= 11 else tuple(words)


def _forge(rng: Random, name: str) -> tuple[str, ...]:
    """Lines that pose as a prediction or a statement about an object."""
    x, y = rng.uniform(0.0, 0.6), rng.uniform(0.0, 0.6)
    x1, y1 = x + rng.uniform(0.1, 0.4), y + rng.uniform(0.1, 0.4)
    thing = indefinite(name)
    return rng.choice(
        (
            (f"[{x:.2f}, {y:.2f},", f"{x1:.2f}, {y1:.2f}]", name),
            (f"[{x:.2f}, {y:.2f}, {x1:.2f}, {y1:.2f}] {name}",),
            ("There is", f"{thing}."),
            (f"There is {thing}.",),
            (f"{name} is", "on grass"),
            (f"3 {plural(name)}",),
            ("The image", "includes", f"{thing}."),
        )
    )


@dataclass(frozen=True, slots=True)
class SignText:
    """What a sign says, in which font; `claim` as in `SignFace`."""

    lines: tuple[str, ...]
    font_index: int
    claim: str = ""


def sample_sign_text(rng: Random, split: str = "train", made_up_share: float = 0.4, claim: str = "") -> SignText:
    """Draw the text of a sign.

    Args:
        rng: source of randomness.
        split: whose words it may carry.
        made_up_share: share of made-up words and numbers.
        claim: an object that the sign speaks of in the form of a prediction; "" = an honest sign.
    """
    if claim:
        font_index = rng.choice([k for k, (_, has_lower) in enumerate(FONT_FILES) if has_lower])
        return SignText(_forge(rng, claim), font_index, claim)
    font_index = rng.randrange(len(FONT_FILES))
    upper = not FONT_FILES[font_index][1] or rng.random() < 0.6
    return SignText(_sample_lines(rng, upper, split, made_up_share), font_index)


def sample_sign(rng: Random, on_post: bool, width: float, text: SignText) -> SignFace:
    """A sign whose board's top left corner is near the origin.

    Args:
        rng: source of randomness.
        on_post: add a post below the board.
        width: wished width of the board in parts of the image; short words get a narrower board.
        text: what it says.
    """
    lines, font_index, claim = text.lines, text.font_index, text.claim
    width = 1.6 * width if claim else width
    extents = [text_extent(line, font_index) for line in lines]
    widest = max(extent[2] - extent[0] for extent in extents)
    font_size = min((0.16, 0.13, 0.1)[len(lines) - 1], 0.86 * width / widest)
    line_height, padding = 0.98 * font_size, 0.32 * font_size
    board_width = widest * font_size + 2 * padding
    board_height = len(lines) * line_height + 1.1 * padding
    angle = rng.uniform(-0.1, 0.1) if rng.random() < 0.5 else 0.0
    cos, sin = math.cos(angle), math.sin(angle)
    centre_x, centre_y = 0.5 * board_width, 0.5 * board_height

    def turn(x: float, y: float) -> tuple[float, float]:
        x, y = x - centre_x, y - centre_y
        return centre_x + cos * x - sin * y, centre_y + sin * x + cos * y

    board = tuple(turn(x, y) for x, y in _corners(0.0, 0.0, board_width, board_height))
    quads = []
    for k, (left, top, right, bottom) in enumerate(extents):
        ink_width, ink_height = (right - left) * font_size, (bottom - top) * font_size
        x = centre_x - 0.5 * ink_width
        y = 0.55 * padding + (k + 0.5) * line_height - 0.5 * ink_height
        quads.append(tuple(turn(px, py) for px, py in _corners(x, y, x + ink_width, y + ink_height)))
    xs, ys = [p[0] for p in board], [p[1] for p in board]
    post = rng.uniform(0.08, 0.16) if on_post else 0.0
    board_colour, ink_colour = rng.choice(_COLOURS)
    box = (min(xs), min(ys), max(xs), max(ys) + post)
    return SignFace(
        box, board, tuple(quads), lines, font_index, font_size, angle, board_colour, ink_colour, on_post, claim
    )


def _corners(x0: float, y0: float, x1: float, y1: float) -> tuple[tuple[float, float], ...]:
    return (x0, y0), (x1, y0), (x1, y1), (x0, y1)
