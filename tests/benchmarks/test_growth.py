"""The benchmarks of growth and of half precision measure what they say; they assert no time."""

import numpy as np
import pytest

from benchmarks.growth import fit_exponent, verbalize
from benchmarks.verbalizer_dtypes import agree
from verbalizers import Detections, Relations, Segments


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("counts", [(1, 10, 100, 1000), (1, 4, 16, 64, 256)])
def test_exponent_is_the_power_when_a_curve_ends_as_one(power: float, counts: tuple[int, ...]) -> None:
    seconds = [count**power for count in counts]
    seconds[0] *= 50  # what starting costs
    assert fit_exponent(counts, seconds) == pytest.approx(power)


def test_run_is_measured_when_images_are_few() -> None:
    assert verbalize(3) > 0


def detect(*boxes: tuple[str, list[float]]) -> Detections:
    names = tuple(name for name, _ in boxes)
    corners = np.array([box for _, box in boxes], dtype=np.float32).reshape(-1, 4)
    return Detections(corners, names, np.full(len(boxes), 0.9, dtype=np.float32), (20, 20))


def relate(*triplets: tuple[str, str, str]) -> Relations:
    names = tuple(name for subject, _, object_ in triplets for name in (subject, object_))
    places = np.arange(len(triplets), dtype=np.int64)
    predicates = tuple(predicate for _, predicate, _ in triplets)
    return Relations(names, 2 * places, 2 * places + 1, predicates, np.ones(len(triplets), dtype=np.float32))


def test_agreement_is_the_share_that_both_find() -> None:
    cat, moved, dog = ("cat", [0, 0, 10, 10]), ("cat", [1, 0, 11, 10]), ("dog", [0, 0, 10, 10])
    assert agree(detect(cat), detect(moved)) == 1.0 == agree(detect(), detect())
    assert agree(detect(cat, dog), detect(moved)) == 0.5 and agree(detect(cat), detect(dog)) == 0.0
    on, under = ("cat", "on", "mat"), ("cat", "under", "mat")
    assert agree(relate(on, under), relate(under)) == 0.5 and agree(relate(), relate()) == 1.0
    halves = np.array([[1, 2], [1, 2]], dtype=np.int32)
    first, second = (
        Segments(halves, (1, 2), names, np.ones(2, dtype=np.float32)) for names in (("sky", "sea"), ("sky", "sand"))
    )
    assert agree(first, first) == 1.0 and agree(first, second) == 0.5
