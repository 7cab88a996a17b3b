"""Reading order of the lines of text on a page. Pure numpy.

Top to bottom, left to right within a line, column by column where the page is set in columns. A page that lies at a
slant, on its side or on its head is turned upright first, as its lines' own direction says. Scripts that are set from
left to right, and from top to bottom in columns that follow each other from the right (Chinese, Japanese): on paper
that is a page turned a quarter. Not Arabic and Hebrew, nor Mongolian, whose columns follow each other from the left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verbalizers.core.boxes import quads_to_boxes

__all__ = ["estimate_slant", "orient_quads", "reading_order"]

#: A column of text has at least this many lines; fewer are labels that happen to stand above each other.
MIN_COLUMN_LINES = 3
#: The white between two columns, and a column's width, in line heights: narrower columns are those of a table or of
#: a price list, which are read across.
MIN_GUTTER, MIN_COLUMN_WIDTH = 0.6, 5.0
#: Share of its column's width that the middle one of a column's lines fills at least.
MIN_COLUMN_FILL = 0.5
#: PP-OCR turns a line that is so much higher than wide a quarter to the left before it reads it.
TALL_RATIO = 1.5


def orient_quads(quads: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Corners from the text's own top left on, of quads as PP-OCR gives them: from the one that is uppermost left.

    A piece that stands upright was read from top to bottom: its text begins at its right corner. A single letter
    stands upright in any text and stays. Oriented quads stay as they are.

    Args:
        quads: `(N, 4, 2)` corner points x, y, clockwise.
        texts: what was read in each.

    Returns:
        Likewise, of the same dtype.
    """
    points = np.asarray(quads).reshape(-1, 4, 2)
    sides = np.linalg.norm(np.roll(points, -1, axis=1) - points, axis=2)  # (N, 4): top, right, bottom, left
    is_tall = np.maximum(sides[:, 1], sides[:, 3]) >= TALL_RATIO * np.maximum(sides[:, 0], sides[:, 2])
    is_tall &= np.array([len(text.strip()) > 1 for text in texts], dtype=bool)
    return np.where(is_tall[:, None, None], np.roll(points, -1, axis=1), points)


def reading_order(quads: np.ndarray) -> np.ndarray:
    """Indices that put pieces of text in reading order.

    Two pieces share a line when their heights overlap by more than half of the lower one's height. Blocks of lines
    that a white gutter divides from top to bottom are read one column after the other, if both sides look like
    running text (see the constants above).

    Args:
        quads: `(N, 4, 2)` corner points x, y, clockwise from the top left of each piece's text (`orient_quads`).

    Returns:
        int64 `(N,)` permutation.
    """
    points = np.asarray(quads, dtype=np.float64).reshape(-1, 4, 2)
    if len(points) == 0:
        return np.zeros(0, dtype=np.int64)
    slant = estimate_slant(points)
    turn = np.array([[np.cos(slant), -np.sin(slant)], [np.sin(slant), np.cos(slant)]])
    boxes = quads_to_boxes(points @ turn)  # row vectors: points @ turn rotates by -slant
    ordered = _order_blocks(_group_lines(boxes), boxes)
    return np.array(ordered, dtype=np.int64)


def estimate_slant(quads: np.ndarray) -> float:
    """Direction of the text's lines in radians: 0 = to the right, positive = falling to the right, pi = on its head.

    Right, down, left or up, whichever most of the text runs to (by length); there the median over the pieces, weighted
    with their lengths. Pieces that are not clearly longer than high tell nothing. 0 where none tells anything.

    Args:
        quads: `(N, 4, 2)` corner points, clockwise from the top left of each piece's text.
    """
    points = np.asarray(quads, dtype=np.float64).reshape(-1, 4, 2)
    along = (points[:, 1] - points[:, 0] + points[:, 2] - points[:, 3]) / 2
    across = (points[:, 3] - points[:, 0] + points[:, 2] - points[:, 1]) / 2
    lengths = np.linalg.norm(along, axis=1)
    tells = lengths > 1.5 * np.linalg.norm(across, axis=1)
    if not tells.any():
        return 0.0
    angles, lengths = np.arctan2(along[tells, 1], along[tells, 0]), lengths[tells]
    quarters = np.round(angles / (np.pi / 2)).astype(int) % 4
    quarter = np.bincount(quarters, lengths, minlength=4).argmax()
    is_main = quarters == quarter
    # Against the main direction, so that nothing jumps from pi to -pi.
    rest = (angles[is_main] - quarter * np.pi / 2 + np.pi) % (2 * np.pi) - np.pi
    order = np.argsort(rest, kind="stable")
    weights = np.cumsum(lengths[is_main][order])
    return float(quarter * np.pi / 2 + rest[order][np.searchsorted(weights, weights[-1] / 2)])


def _group_lines(boxes: np.ndarray) -> list[list[int]]:
    """Indices of the pieces of each line, lines from top to bottom, pieces from left to right."""
    rows: list[list[int]] = []
    for index in np.argsort((boxes[:, 1] + boxes[:, 3]) / 2, kind="stable"):
        top, bottom = boxes[index, 1], boxes[index, 3]
        if rows:
            # Compared with the line's last piece, so that a slight curve stays one line.
            last_top, last_bottom = boxes[rows[-1][-1], 1], boxes[rows[-1][-1], 3]
            shared = min(bottom, last_bottom) - max(top, last_top)
            if shared > 0.5 * min(bottom - top, last_bottom - last_top):
                rows[-1].append(int(index))
                continue
        rows.append([int(index)])
    return [sorted(row, key=lambda i: (boxes[i, 0], boxes[i, 1])) for row in rows]


def _order_blocks(rows: list[list[int]], boxes: np.ndarray) -> list[int]:
    """Pieces in order: runs of lines that a gutter divides column by column, other lines as they stand."""
    ordered: list[int] = []
    start = 0
    while start < len(rows):
        stop, gutter = _longest_divided_run(rows, boxes, start)
        members = [index for row in rows[start:stop] for index in row]
        left = [index for index in members if gutter is not None and boxes[index, 2] <= gutter]
        right = [index for index in members if gutter is not None and boxes[index, 0] >= gutter]
        if gutter is not None and _is_column(left, boxes) and _is_column(right, boxes):
            for side in (left, right):
                lines = _group_lines(boxes[side])
                ordered += _order_blocks([[side[i] for i in line] for line in lines], boxes)
        else:
            ordered += members
        start = stop
    return ordered


def _longest_divided_run(rows: list[list[int]], boxes: np.ndarray, start: int) -> tuple[int, float | None]:
    """End of the longest run of lines from `start` that one gutter divides, and the gutter's middle (None = none)."""
    gutter = None
    members: list[int] = []
    for stop in range(start, len(rows)):
        members = members + rows[stop]
        wider = _widest_gutter(boxes[members])
        if wider is None and gutter is not None:
            return stop, gutter  # this line lies across the gutter: it is a heading, or the columns have ended
        if wider is None and stop > start and _widest_gutter(boxes[rows[stop]]) is not None:
            return stop, None  # the lines before lie across this line's gutter
        gutter = wider
    return len(rows), gutter


def _widest_gutter(boxes: np.ndarray) -> float | None:
    """Middle of the widest vertical strip that no box touches, between boxes; None where it is too narrow."""
    boxes = boxes[np.argsort(boxes[:, 0], kind="stable")]
    reach = np.maximum.accumulate(boxes[:, 2])[:-1]
    gaps = boxes[1:, 0] - reach
    if len(gaps) == 0 or gaps.max() < MIN_GUTTER * np.median(boxes[:, 3] - boxes[:, 1]):
        return None
    widest = int(gaps.argmax())
    return float(reach[widest] + gaps[widest] / 2)


def _is_column(members: list[int], boxes: np.ndarray) -> bool:
    """Whether pieces look like running text: several lines, most of which fill most of the width."""
    if len(members) < MIN_COLUMN_LINES:
        return False
    column = boxes[members]
    width = column[:, 2].max() - column[:, 0].min()
    height = np.median(column[:, 3] - column[:, 1])
    lines = _group_lines(column)
    fill = np.median([(column[line, 2].max() - column[line, 0].min()) / max(width, 1e-6) for line in lines])
    return len(lines) >= MIN_COLUMN_LINES and width >= MIN_COLUMN_WIDTH * height and fill >= MIN_COLUMN_FILL
