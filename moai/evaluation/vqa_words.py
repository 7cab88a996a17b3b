"""Answers as the VQA benchmark's evaluation code compares them (Antol et al., arXiv 1505.00468)."""

from __future__ import annotations

import re

__all__ = ["normalize_answer"]

_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
#: Written without their apostrophe by many annotators.
_CONTRACTIONS = {
    short: text
    for text in """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd
    who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll you'd you'd've
    you'll you're you've""".split()
    for short in {text.replace("'", ""), text.replace("'", "", 1), "".join(text.rsplit("'", 1))} - {text}
}
_PUNCTUATION = r';/[]"{}()=+\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(\d)(,)(\d)")
_PERIOD = re.compile(r"\.(?!\d)")


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and number words, contractions with their apostrophe."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    had_number = _COMMA_IN_NUMBER.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_space or had_number else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", plain).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
