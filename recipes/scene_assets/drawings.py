"""Vector drawings of the things that have no emoji: lists of shapes on a 100 x 100 grid, drawn with Pillow."""

from PIL import Image, ImageDraw

__all__ = ["DRAWINGS", "render_drawing"]

# (shape, colour, coordinates): rect and ellipse take a box, round a box with rounded corners, poly points,
# line points and a width as the last number.
_Shape = tuple[str, str, tuple[float, ...]]
_WOOD, _WOOD_DARK, _STEEL, _STEEL_DARK = "#a9713f", "#7d4f28", "#d5dbe0", "#8b969e"

DRAWINGS: dict[str, tuple[_Shape, ...]] = {
    "fire hydrant": (
        ("rect", "#c62828", (25, 88, 75, 100)),
        ("rect", "#e53935", (32, 35, 68, 90)),
        ("ellipse", "#e53935", (30, 14, 70, 54)),
        ("rect", "#b71c1c", (26, 32, 74, 40)),
        ("rect", "#b71c1c", (44, 4, 56, 18)),
        ("rect", "#c62828", (14, 48, 86, 64)),
        ("ellipse", "#ffca28", (39, 46, 61, 68)),
        ("rect", "#ef9a9a", (36, 68, 40, 86)),
    ),
    "parking meter": (
        ("rect", "#5f6b73", (45, 52, 55, 97)),
        ("rect", "#4a545b", (34, 94, 66, 100)),
        ("round", "#78909c", (26, 2, 74, 56)),
        ("ellipse", "#eceff1", (34, 8, 66, 36)),
        ("line", "#d32f2f", (50, 24, 60, 13, 3)),
        ("rect", "#37474f", (40, 42, 60, 47)),
    ),
    "bench": (
        ("rect", "#4e4e4e", (10, 50, 16, 96)),
        ("rect", "#4e4e4e", (84, 50, 90, 96)),
        ("rect", _WOOD, (2, 28, 98, 38)),
        ("rect", _WOOD, (2, 42, 98, 52)),
        ("rect", _WOOD_DARK, (0, 60, 100, 71)),
    ),
    "tie": (
        ("poly", "#8e1b2f", (38, 0, 62, 0, 56, 16, 44, 16)),
        ("poly", "#c2233f", (44, 16, 56, 16, 68, 82, 50, 100, 32, 82)),
        ("poly", "#f0c3cb", (41, 34, 59, 42, 61, 49, 40, 41)),
        ("poly", "#f0c3cb", (37, 58, 63, 68, 65, 75, 36, 65)),
    ),
    "skis": (
        ("poly", "#1565c0", (2, 84, 88, 44, 98, 34, 100, 42, 90, 52, 6, 92)),
        ("poly", "#ef6c00", (0, 62, 84, 22, 94, 12, 97, 20, 87, 30, 4, 70)),
        ("poly", "#37474f", (40, 58, 56, 50, 60, 58, 44, 66)),
        ("poly", "#37474f", (38, 36, 54, 28, 58, 36, 42, 44)),
    ),
    "snowboard": (
        ("poly", "#6a1b9a", (0, 52, 8, 42, 30, 50, 74, 50, 92, 42, 100, 50, 88, 62, 12, 62)),
        ("rect", "#ffd54f", (26, 51, 36, 61)),
        ("rect", "#ffd54f", (64, 51, 74, 61)),
    ),
    "baseball bat": (
        ("line", "#c98a4b", (14, 88, 50, 48, 8)),
        ("line", "#c98a4b", (46, 52, 82, 14, 16)),
        ("ellipse", "#c98a4b", (74, 4, 92, 22)),
        ("ellipse", "#7d4f28", (6, 82, 20, 96)),
        ("line", "#4e342e", (18, 84, 34, 66, 8)),
    ),
    "surfboard": (
        ("poly", "#26a69a", (0, 56, 14, 46, 50, 41, 84, 44, 100, 54, 84, 62, 50, 65, 14, 63)),
        ("poly", "#fff3e0", (14, 51, 86, 50, 86, 56, 14, 57)),
        ("poly", "#e64a19", (30, 50, 40, 50, 40, 57, 30, 57)),
    ),
    "fork": (
        ("round", _STEEL_DARK, (45, 46, 55, 100)),
        ("poly", "#b9c2c9", (34, 30, 66, 30, 62, 48, 50, 54, 38, 48)),
        *(("rect", "#b9c2c9", (x, 0, x + 6, 34)) for x in (34, 44, 50, 60)),
    ),
    "dining table": (
        ("rect", _WOOD_DARK, (8, 30, 17, 98)),
        ("rect", _WOOD_DARK, (83, 30, 92, 98)),
        ("rect", "#8f5d31", (24, 34, 30, 80)),
        ("rect", "#8f5d31", (70, 34, 76, 80)),
        ("poly", _WOOD, (12, 14, 88, 14, 100, 28, 0, 28)),
        ("rect", "#8a572c", (0, 28, 100, 37)),
    ),
    "remote": (
        ("round", "#2d3238", (34, 0, 66, 100)),
        ("ellipse", "#e53935", (43, 7, 57, 20)),
        *(("ellipse", "#cfd8dc", (x, y, x + 8, y + 8)) for y in (30, 44, 58, 72) for x in (39, 53)),
    ),
    "microwave": (
        ("round", "#c3cbd1", (0, 22, 100, 84)),
        ("rect", "#263238", (8, 30, 70, 76)),
        ("rect", "#546e7a", (14, 36, 64, 70)),
        ("rect", "#37474f", (78, 30, 93, 42)),
        *(("ellipse", "#607d8b", (x, y, x + 6, y + 6)) for y in (49, 58, 67) for x in (78, 87)),
    ),
    "oven": (
        ("rect", "#eceff1", (6, 8, 94, 98)),
        ("rect", "#455a64", (6, 8, 94, 26)),
        *(("ellipse", "#eceff1", (x, 11, x + 12, 23)) for x in (14, 34, 54, 74)),
        ("rect", "#78909c", (16, 34, 84, 39)),
        ("rect", "#263238", (18, 46, 82, 86)),
        ("rect", "#ff8f00", (24, 74, 76, 80)),
    ),
    "toaster": (
        ("poly", "#d7a86e", (24, 14, 44, 14, 44, 40, 24, 40)),
        ("poly", "#d7a86e", (54, 14, 74, 14, 74, 40, 54, 40)),
        ("round", "#ef5350", (6, 34, 94, 92)),
        ("rect", "#ffcdd2", (14, 44, 86, 50)),
        ("rect", "#37474f", (92, 50, 100, 60)),
        ("rect", "#37474f", (14, 90, 26, 98)),
        ("rect", "#37474f", (74, 90, 86, 98)),
    ),
    "sink": (
        ("rect", "#b0bec5", (38, 52, 62, 98)),
        ("poly", "#f5f8fa", (2, 40, 98, 40, 82, 74, 18, 74)),
        ("rect", "#cfd8dc", (0, 34, 100, 43)),
        ("line", "#78909c", (50, 36, 50, 12, 7)),
        ("line", "#78909c", (48, 12, 68, 12, 7)),
        ("line", "#78909c", (66, 10, 66, 24, 7)),
    ),
    "refrigerator": (
        ("round", "#dfe5e9", (18, 0, 82, 98)),
        ("rect", "#9aa7af", (18, 36, 82, 39)),
        ("rect", "#78909c", (26, 14, 31, 32)),
        ("rect", "#78909c", (26, 46, 31, 72)),
        ("rect", "#546e7a", (24, 96, 34, 100)),
        ("rect", "#546e7a", (66, 96, 76, 100)),
    ),
    "hair drier": (
        ("poly", "#ad1457", (44, 48, 64, 44, 72, 96, 54, 100)),
        ("ellipse", "#ec407a", (34, 8, 92, 62)),
        ("poly", "#ec407a", (4, 20, 56, 12, 56, 58, 4, 48)),
        ("rect", "#4a2535", (0, 19, 8, 49)),
        ("ellipse", "#f8bbd0", (56, 24, 78, 46)),
    ),
    "fence": (
        ("rect", "#d9c29c", (0, 40, 100, 49)),
        ("rect", "#d9c29c", (0, 70, 100, 79)),
        *(("poly", "#efe0c4", (x, 98, x, 28, x + 6, 18, x + 12, 28, x + 12, 98)) for x in (1, 18, 35, 52, 69, 86)),
    ),
    "shelf": (
        ("rect", "#5d3a1c", (8, 0, 92, 100)),
        *(("rect", "#94663a", (14, y, 86, y + 20)) for y in (6, 30, 54, 78)),
        *(("rect", "#c8a06c", (8, y, 92, y + 5)) for y in (24, 48, 72, 95)),
        *(("rect", c, (x, 34, x + 7, 48)) for x, c in ((18, "#c62828"), (26, "#1565c0"), (34, "#2e7d32"))),
        *(("rect", c, (x, 58, x + 7, 72)) for x, c in ((58, "#f9a825"), (66, "#6a1b9a"), (74, "#00838f"))),
    ),
    "pillow": (
        ("poly", "#7e9fd0", (4, 32, 50, 38, 96, 30, 92, 56, 97, 84, 50, 78, 3, 86, 8, 58)),
        ("line", "#5a7cb0", (14, 46, 50, 52, 86, 45, 2)),
        ("line", "#a9c1e6", (16, 70, 50, 66, 84, 71, 2)),
    ),
    "stairs": tuple(
        ("rect", ("#9e9e9e", "#b5b5b5")[step % 2], (step * 16.6, 83 - step * 16.6, 100, 100 - step * 16.6))
        for step in range(6)
    ),
    "curtain": (
        ("rect", "#8d6e63", (0, 0, 100, 6)),
        *(("rect", ("#b23a48", "#96303d")[i % 2], (6 + i * 8, 6, 14 + i * 8, 98)) for i in range(11)),
    ),
    "bridge": (
        (
            "poly",
            "#8d7b6a",
            (0, 44, 20, 30, 50, 24, 80, 30, 100, 44, 100, 84, 84, 84, 72, 62, 50, 54, 28, 62, 16, 84, 0, 84),
        ),
        ("line", "#6b5b4c", (0, 42, 20, 28, 50, 22, 80, 28, 100, 42, 5)),
        *(("rect", "#6b5b4c", (x, y, x + 3, y + 14)) for x, y in ((8, 26), (28, 15), (48, 11), (68, 15), (88, 26))),
        ("line", "#6b5b4c", (0, 28, 20, 15, 50, 10, 80, 15, 100, 28, 4)),
    ),
}


def render_drawing(name: str, size: int) -> Image.Image:
    """Draw one of `DRAWINGS`.

    Args:
        name: key of `DRAWINGS`.
        size: side of the square RGBA image in pixels; drawn four times larger and averaged down.
    """
    scale = 4 * size / 100
    canvas = Image.new("RGBA", (4 * size, 4 * size))
    draw = ImageDraw.Draw(canvas)
    for shape, colour, numbers in DRAWINGS[name]:
        if shape == "line":
            *points, width = numbers
            draw.line([p * scale for p in points], colour, round(width * scale), joint="curve")
            continue
        coordinates = [p * scale for p in numbers]
        if shape == "rect":
            draw.rectangle(coordinates, colour)
        elif shape == "round":
            draw.rounded_rectangle(coordinates, 8 * scale, colour)
        elif shape == "ellipse":
            draw.ellipse(coordinates, colour)
        else:
            draw.polygon(coordinates, colour)
    return canvas.resize((size, size), Image.Resampling.BOX)
