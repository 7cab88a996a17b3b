"""Signs with words: what they say, in which font and colours, and where each line of text lies."""

import math
from dataclasses import dataclass, replace
from random import Random

from moai.scenes.asset_loading import FONT_FILES, text_extent

__all__ = ["SIGN_WORDS", "SignFace", "sample_sign"]

SIGN_WORDS: tuple[str, ...] = tuple(
    """
    stop exit open closed welcome hotel cafe bakery pizza coffee tea books music cinema theatre museum library school
    bank market shop sale free fresh bread fruit milk water juice ice cream menu lunch dinner breakfast bar grill
    taxi bus train station airport parking police hospital pharmacy doctor fire danger warning caution slow speed
    limit push pull enter help info tickets gate north south east west left right up down street road avenue
    park garden farm forest river lake beach island harbor bridge tower castle church temple office studio
    gallery kitchen garage workshop laundry barber salon tailor jewelry florist butcher grocery hardware toys games
    sports club gym pool spa camp trail summit valley village city town home house rooms rent sold new
    old hot cold best super mega mini happy lucky golden silver red blue green black white sunny royal grand
    central union liberty victory star moon sun ocean breeze summer winter spring autumn monday friday sunday
    private public staff only please thank you hello love peace hope dream magic power energy lemon apple
    honey salt pepper sugar spice soup noodle sushi taco burger salad cheese pasta wine beer rice fish
    zoo circus carnival festival concert dance art photo print copy paint glass paper wood stone iron steel
    repair rental service center point corner plaza arena stadium marina pier dock ferry cruise travel tours
    """.split()
)
_SYLLABLES = (
    "ba",
    "co",
    "di",
    "fu",
    "ga",
    "ho",
    "jo",
    "ka",
    "li",
    "mo",
    "na",
    "pe",
    "ri",
    "so",
    "ta",
    "vu",
    "wa",
    "zy",
)

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

    def moved_to(self, dx: float, dy: float) -> "SignFace":
        """The same sign shifted by (dx, dy)."""
        x0, y0, x1, y1 = self.box
        return replace(
            self,
            box=(x0 + dx, y0 + dy, x1 + dx, y1 + dy),
            board=tuple((x + dx, y + dy) for x, y in self.board),
            quads=tuple(tuple((x + dx, y + dy) for x, y in quad) for quad in self.quads),
        )


def _sample_word(rng: Random, unseen_share: float | None = None) -> str:
    if unseen_share is not None:
        return _unseen_word(rng) if rng.random() < unseen_share else rng.choice(SIGN_WORDS)
    draw = rng.random()
    if draw < 0.72:
        return rng.choice(SIGN_WORDS)
    if draw < 0.9:  # a name nobody has seen: it must be read, not guessed
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))
    return str(rng.randint(1, 999))


def _unseen_word(rng: Random) -> str:
    """Any syllables or digits: who has no word to guess must read letter by letter."""
    if rng.random() < 0.35:
        return str(rng.randint(1, 9999))
    syllables = (rng.choice("bcdfghjklmnprstvwyz") + rng.choice("aeiouy") for _ in range(rng.randint(1, 3)))
    return "".join(syllables) + (rng.choice("dklmnprst") if rng.random() < 0.4 else "")


def _sample_lines(rng: Random, upper: bool, unseen_share: float | None = None) -> tuple[str, ...]:
    draw = rng.random()
    words = [_sample_word(rng, unseen_share) for _ in range(1 if draw < 0.6 else 2)]
    words = [word.upper() if upper else word.capitalize() for word in words]
    return (" ".join(words),) if draw < 0.75 and sum(map(len, words)) <= 11 else tuple(words)


def sample_sign(rng: Random, on_post: bool, width: float, unseen_share: float | None = None) -> SignFace:
    """A sign whose board's top left corner is near the origin.

    Args:
        rng: source of randomness.
        on_post: add a post below the board.
        width: wished width of the board in parts of the image; short words get a narrower board.
        unseen_share: share of made-up words and numbers; None = the test split's mixture (28 %).
    """
    font_index = rng.randrange(len(FONT_FILES))
    upper = not FONT_FILES[font_index][1] or rng.random() < 0.6
    lines = _sample_lines(rng, upper, unseen_share)
    extents = [text_extent(line, font_index) for line in lines]
    widest = max(extent[2] - extent[0] for extent in extents)
    font_size = min(0.16 if len(lines) == 1 else 0.13, 0.86 * width / widest)
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
    return SignFace(box, board, tuple(quads), lines, font_index, font_size, angle, board_colour, ink_colour, on_post)


def _corners(x0: float, y0: float, x1: float, y1: float) -> tuple[tuple[float, float], ...]:
    return (x0, y0), (x1, y0), (x1, y1), (x0, y1)
