"""Reading order on pages whose order is known, shuffled and turned."""

import numpy as np
import pytest

from verbalizers import TextLines
from verbalizers.backends.ocr import select_text_lines
from verbalizers.backends.ocr_order import estimate_slant, orient_quads, reading_order


def box(x, y, width=10, height=10):
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]


def turn(quads, degrees):
    """Turned round the page's middle, clockwise."""
    angle = np.deg2rad(degrees)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (np.asarray(quads, float) - 200) @ matrix + 200


def ragged(x, y, width):
    return box(x, y, width - (7 * x + 3 * y) % 23, 14)


HEADING = [box(10, 0, 400, 14)]
FOOTER = [box(10, 200, 380, 14)]
TWO_COLUMNS = [ragged(x, 20 + 20 * i, 190) for x in (10, 230) for i in range(8)]
THREE_COLUMNS = [ragged(10 + 220 * c, 20 * i, 200) for c in range(3) for i in range(5)]
PAGES = {
    "one piece": [box(3, 4)],
    "lines of words": [box(10 + 70 * k, 20 * i, 60, 14) for i in range(6) for k in range(3)],
    "two columns": TWO_COLUMNS,
    "two columns with heading and footer": HEADING + TWO_COLUMNS + FOOTER,
    "two blocks of columns": HEADING + TWO_COLUMNS + FOOTER + [[[x, y + 220] for x, y in q] for q in TWO_COLUMNS],
    "three columns": THREE_COLUMNS,
    # A price list is read across: its right column is too narrow for running text.
    "price list": [q for i in range(6) for q in (box(10, 20 * i, 150, 14), box(300, 20 * i, 40, 14))],
    # So are two signs beside each other: too few lines.
    "two signs": [q for i in range(2) for q in (box(10, 20 * i, 150, 14), box(300, 20 * i, 150, 14))],
}


@pytest.mark.parametrize("degrees", [0, 6, -9, 25, 85, 90, 95, 140, 175, 180, 185, 265, 270, 275])
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_reading_order_is_found_when_page_is_shuffled_and_turned(page, degrees):
    quads = turn(page, degrees)
    shuffle = np.random.default_rng(len(page)).permutation(len(page))
    order = reading_order(quads[shuffle])
    assert order.dtype == np.int64
    assert shuffle[order].tolist() == list(range(len(page)))


def test_reading_order_goes_by_rows_when_heights_overlap():
    # A row whose pieces differ a little in height, above a lower row that starts further left.
    quads = np.array([box(60, 3), box(0, 0), box(30, 6), box(0, 20), box(5, 40, 50, 30), box(60, 45)])
    assert reading_order(quads).tolist() == [1, 2, 0, 3, 4, 5]
    assert reading_order(np.zeros((0, 4, 2))).tolist() == []


def test_reading_order_is_a_permutation_when_pieces_lie_anywhere():
    rng = np.random.default_rng(0)
    for length in (1, 2, 7, 60, 300):
        corners = rng.uniform(0, 500, (length, 1, 2)) + rng.uniform(-30, 30, (length, 4, 2))
        assert sorted(reading_order(corners)) == list(range(length))
    assert sorted(reading_order(np.zeros((5, 4, 2)))) == list(range(5))  # points without extent


@pytest.mark.parametrize("degrees", [0, 12, -30, 90, -95, 176, -179])
def test_slant_is_measured_when_some_pieces_mislead(degrees):
    misleading = [box(50, 50, 10, 10), box(80, 20, 8, 60)]  # a square and an upright line
    quads = np.concatenate([turn([box(10, 20 * i, 200, 12) for i in range(3)], degrees), np.array(misleading, float)])
    assert (np.rad2deg(estimate_slant(quads)) - degrees + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)
    assert estimate_slant(np.array(misleading)) == 0


def as_detected(quads):
    """The quads' upright boxes: the first corner is the image's uppermost left one, as PP-OCR's detector has it."""
    low, high = np.min(quads, axis=1), np.max(quads, axis=1)
    return np.array([box(x0, y0, x1 - x0, y1 - y0) for (x0, y0), (x1, y1) in zip(low, high, strict=True)], float)


@pytest.mark.parametrize("degrees", [0, 90])
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_lines_are_put_in_order_when_their_quads_follow_the_image(page, degrees):
    """A page turned a quarter clockwise, or columns of an upright script: read downwards, from the right."""
    texts = [f"text {i}" for i in range(len(page))]
    shuffle = np.random.default_rng(1).permutation(len(page))
    quads = as_detected(turn(page, degrees))[shuffle]
    found = select_text_lines(TextLines(quads, tuple(texts[i] for i in shuffle), np.ones(len(page))), 0.5)
    assert list(found.texts) == texts
    again = orient_quads(found.quads, found.texts)
    np.testing.assert_array_equal(again, found.quads)
    assert again.dtype == np.float32


def test_single_letters_stay_upright_when_their_boxes_are_tall():
    """Three figures in a row are no upright script: they tell no direction."""
    quads = np.array([box(100 * k, 0, 20, 40) for k in range(3)], float)
    assert select_text_lines(TextLines(quads, ("1", "2", "3"), np.ones(3)), 0.5).texts == ("1", "2", "3")
