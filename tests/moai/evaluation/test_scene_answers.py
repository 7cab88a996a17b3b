import pytest

from moai.evaluation.scene_answers import box_iou, is_right, mentioned_names, name_f1, parse_box


def test_is_right_compares_boxes_by_overlap_when_a_box_is_expected():
    assert is_right("[0.10, 0.10, 0.50, 0.50]", " [0.12, 0.10, 0.50, 0.52]")
    assert not is_right("[0.10, 0.10, 0.50, 0.50]", "[0.40, 0.40, 0.90, 0.90]")
    assert not is_right("[0.10, 0.10, 0.50, 0.50]", "top left")
    assert not is_right("[0.10, 0.10, 0.50, 0.50]", "[0.1.2, 0.10, 0.50, 0.50]")


def test_is_right_ignores_case_and_full_stop_only_when_words_are_expected():
    assert is_right("SOLIKA 125", "solika  125.")
    assert not is_right("SOLIKA 125", "SOLIKA 12")
    assert not is_right("top left", "left")


def test_box_iou_is_zero_when_boxes_are_empty_or_apart():
    assert box_iou((0, 0, 0, 0), (0, 0, 1, 1)) == 0
    assert box_iou((0, 0, 0.4, 1), (0.5, 0, 1, 1)) == 0
    assert box_iou((0, 0, 1, 1), (0, 0, 0.5, 1)) == pytest.approx(0.5)


def test_parse_box_finds_the_first_box_when_text_surrounds_it():
    assert parse_box("at [0.10, 0.20, 0.30, 0.40] I think") == (0.1, 0.2, 0.3, 0.4)
    assert parse_box("[0.10, 0.20]") is None


def test_mentioned_names_reads_plurals_and_skips_signs_when_signs_are_quoted():
    said = "There are 2 people, a hot dog and a dog. The person is on the grass. The sign says PIZZA."
    assert mentioned_names(said) == {"person", "hot dog", "dog", "grass"}


def test_name_f1_is_between_zero_and_one_when_some_names_match():
    assert name_f1("There is a dog and a cat.", "There is a dog.") == pytest.approx(2 / 3)
    assert name_f1("There is a dog.", "There is a dog.") == 1
    assert name_f1("There is a dog.", "nothing") == 0
