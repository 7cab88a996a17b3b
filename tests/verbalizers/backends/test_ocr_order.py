"""Reading order on pages whose order is known, shuffled and turned."""

import numpy as np
import pytest

from verbalizers.backends.ocr_order import estimate_slant, reading_order


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


@pytest.mark.parametrize("degrees", [0, 6, -9, 25])
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


@pytest.mark.parametrize("degrees", [0, 12, -30])
def test_slant_is_measured_when_some_pieces_mislead(degrees):
    misleading = [box(50, 50, 10, 10), box(80, 20, 8, 60)]  # a square and an upright line
    quads = np.concatenate([turn([box(10, 20 * i, 200, 12) for i in range(3)], degrees), np.array(misleading, float)])
    assert np.rad2deg(estimate_slant(quads)) == pytest.approx(degrees, abs=1e-6)
    assert estimate_slant(np.array(misleading)) == 0
