"""How questions are worded: templates by form, polite frames, suffixes of benchmarks, and what keyboards do to them.

Every third wording of a list is never trained: the training stream does not contain it, the other splits ask half of
their questions with one. Lists only grow at their end, so that no wording changes sides. Two dozen wordings teach their
own words, not what is asked: the training stream alone has many more (`assets/words/training_wordings.json`), written
without sight of those that are kept from it, so that the other splits stay what they were.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from moai.scenes.vocabulary import indefinite, is_plural_name, plural

__all__ = [
    "FORMS",
    "FRAMES",
    "LISTINGS",
    "SUFFIXES",
    "Worded",
    "is_never_trained",
    "name_slots",
    "training_wordings",
    "word_question",
]

_TRAINING_WORDINGS = Path(__file__).parent / "assets" / "words" / "training_wordings.json"

# Slots: {name} dog, {names} dogs, {a} a dog, {is}/{was}/{does} agree with the name, {it} it or they.
_EXISTENCE = """
{Is} there {a} in the picture?|{Is} there {a}?|Are there any {names}?|Do you see {a}?|Can you see {a} in the image?
Does this picture show {a}?|Does the image contain {a}?|Can {a} be seen here?|Is any {name} visible?
Tell me whether there {is} {a}.|Does {a} appear in the photo?|I am looking for {a}. {Is} there one?
Would you say there {is} {a} in this image?|{Is} {a} present?|Check the picture for {a}.|Yes or no: {is} there {a}?
Do you notice {a} anywhere?|Any {names} here?|In this picture, {is} there {a}?|Was {a} in view when this was taken?
There {is} {a} in the image, true or not?|Have you found {a}?|Is it right that there {is} {a}?|Could you spot {a}?
"""
_COUNTING = """
How many {names} are there?|How many {names} are in the picture?|What is the number of {names}?
How many {names} can you see?|Count the {names}.|Give the number of {names}.|How many {names} does the image show?
What number of {names} do you see?|Tell me how many {names} there are.|How many {names} are visible?
How often does {a} appear?|Please count all {names}.|Number of {names}?|In this image, how many {names} are there?
I need the count of {names}.|How many of the things are {names}?|What is the count of {names}?
State how many {names} you see.|Say the number of {names} in the picture.|How many {names}?|Can you count the {names}?
The picture contains how many {names}?|Of {names}, how many are there?|How large is the group of {names}?
"""
_RECOGNITION_REGION = """
What is {where}?|Which object is {where}?|What do you see {where} of the picture?|What can be seen {where}?
Name the object {where}.|Name what is {where}.|What thing is {where} of the image?|What is shown {where}?
Tell me what is {where}.|Looking {where}, what is there?|{Where}, what do you see?|What have we got {where}?
"""
_RECOGNITION_BOX = """
What is at {box}?|Which object is in the box {box}?|What is inside {box}?|Name the object at {box}.
What do you see in {box}?|Identify the object in {box}.|What does the box {box} hold?|Tell me what is in {box}.
What lies within {box}?|{box} is the box of what?|In the box {box}, what is there?
What is the name of the thing at {box}?
"""
# Asked of closeups: what is largest; and {sort} is "animal", "vehicle", ... or "thing", {sorts} several.
_RECOGNITION_LARGEST = """
What is in the picture?|What is the largest {sort} in the picture?|What does the photograph mainly show?
"""
_RECOGNITION_LARGESTS = """
What are these?|What are the largest {sorts} in the picture?|What do most of the things turn out to be?
"""
_RECOGNITION_SORT = """
What {sort} is this?|Which {sort} is there?|Name the {sort} in the photo.
"""
_RECOGNITION_SORTS = """
What {sorts} are these?|Which {sorts} are there?|Name the {sorts} in the photo.
"""
# Asked of closeups: which of two answers is right.
_RECOGNITION_EITHER = """
Is it {first} or {second}?|{First} or {second}: what is there?|Do you see {first} or {second}?
Which of the two is in the picture, {first} or {second}?|Does the image show {first} or {second}?
What can be seen here, {first} or {second}?
"""
_LOCALISATION_EITHER = """
{Is} the {name} more to the {first} or to the {second}?|Where {is} the {name}, {first} or {second}?
On which side {is} the {name}, {first} or {second}?|In which half of the picture {is} the {name}, {first} or {second}?
{First} or {second}: where {is} the {name}?|{Is} the {name} in the {first} or in the {second} half?
"""
_COLOUR_EITHER = """
{Is} the {name} {first} or {second}?|Which colour {is} the {name}, {first} or {second}?
What color {is} the {name}: {first} or {second}?|{First} or {second}, what colour {is} the {name}?
Would you call the {name} {first} or {second}?|{Does} the {name} look {first} or {second}?
"""
_LOCALISATION = """
Where {is} the {name}?|Where in the picture {is} the {name}?|Where can I find the {name}?
In which part of the picture {is} the {name}?|Where do you see the {name}?|Tell me where the {name} {is}.
In what region {is} the {name}?|Give the position of the {name}.|Which part of the image holds the {name}?
Where {is} the {name} located?|What is the location of the {name}?|Point out where the {name} {is}.
In this image, where {is} the {name}?|Say where the {name} {is}.|I cannot find the {name}. Where {is} {it}?
Find the {name}.
"""
_LOCALISATION_BOX = """
What is the box of the {name}?|Give the coordinates of the {name}.|Which bounding box has the {name}?
What is the bounding box of the {name}?|Box of the {name}?|Locate the {name} with a box.
Give the box around the {name}.|What are the coordinates of the {name}?|Draw a box around the {name}.
Tell me the box of the {name}.|Return the bounding box of the {name}.|Where exactly, as a box, {is} the {name}?
"""
_LOCALISATION_WHICH = """
Where is the {which} {name}?|In which part of the picture is the {which} {name}?|Where can I find the {which} {name}?
Where do you see the {which} {name}?|Tell me where the {which} {name} is.|What is the location of the {which} {name}?
Of the {names}, where is the {which} one?|Where is the {which} of the {names}?
There are several {names}. Where is the {which} one?
"""
_RELATION_OBJECT = """
What {is} the {name} {predicate}?|What do you see the {name} {predicate}?|The {name} {is} {predicate} what?
Which thing {is} the {name} {predicate}?|Tell me what the {name} {is} {predicate}.
Name what the {name} {is} {predicate}.|Can you tell what the {name} {is} {predicate}?
In the picture, what {is} the {name} {predicate}?|Say what the {name} {is} {predicate}.
What exactly {is} the {name} {predicate}?|Look at the {name}. What {is} {it} {predicate}?
What might the {name} be {predicate}?
"""
_RELATION_SUBJECT = """
What is {predicate} the {name}?|Which object is {predicate} the {name}?|What do you see {predicate} the {name}?
What can be seen {predicate} the {name}?|Tell me what is {predicate} the {name}.|Name what is {predicate} the {name}.
Something is {predicate} the {name}. What?|In the picture, what is {predicate} the {name}?
Who or what is {predicate} the {name}?|Say what is {predicate} the {name}.
Look at the {name}. What is {predicate} {it}?|What would you say is {predicate} the {name}?
"""
_READING = """
What does the sign say?|What is written on the sign?|What text is on the sign?|Read the sign.
Which words can you read?|Tell me the words on the sign.|What text is in the picture?|What does it say on the sign?
Read out the text.|What is on the sign?|Can you read the sign?|Transcribe the sign.|What word is on the sign?
What do you read on the sign?|The sign says what?|What text do you see?|Give the text of the sign.
What are the words on the sign?|Read the text in the image.|What is the sign saying?|Spell out what the sign says.
"""
_READING_WHICH = """
What does the {which} say?|What is written on the {which}?|What text is on the {which}?|Read the {which}.
Tell me the words on the {which}.|What do you read on the {which}?|Transcribe the {which}.
Give the text of the {which}.|What words does the {which} have?
"""
_READING_WORD = """
What is the {which} word on the sign?|Which word comes {which} on the sign?
What is the {which} thing written on the sign?|Read the {which} word of the sign.
On the sign, what is the {which} word?|Give me the {which} word that you read.|Tell me the {which} word on the sign.
Say the {which} word of the sign.|Of the words on the sign, which is the {which}?
"""
_READING_NUMBER = """
Which number is on the sign?|What number does the sign show?|What is the number written there?|Read the number.
What number is written on the sign?|Tell me which number you can read.|Give the number on the sign.
What number do you see?|What digits are on the sign?
"""
_COLOUR = """
What colour {is} the {name}?|What color {is} the {name}?|Which colour {does} the {name} have?
Which color {is} the {name}?|What is the colour of the {name}?|Name the color of the {name}.
What is the color of the {name}?|Tell me the colour of the {name}.|In what colour {is} the {name} painted?
The {name} {is} of what color?|Say which colour the {name} {is}.|How would you call the colour of the {name}?
Give the colour of the {name}.|Give the color of the {name}.|What shade {is} the {name}?
Describe the colour of the {name}.|What colour {does} the {name} have?|Colour of the {name}?
Which colour do you see on the {name}?|{Is} the {name} red, blue, or what colour?|Color of the {name}?
"""
_COMPARISON = """
Which is {more}, the {name} or the {other}?|What is {more}: the {name} or the {other}?
Of the {name} and the {other}, which is {more}?|The {name} or the {other}: which is {more}?
Which one is {more}, {name} or {other}?|Between the {name} and the {other}, what is {more}?
Compare the {name} and the {other}. Which is {more}?|Which of the two is {more}, the {name} or the {other}?
Is it the {name} or the {other} that is {more}?|Tell me which is {more}, the {name} or the {other}.
Name the one that is {more}: {name} or {other}.|Would you say the {name} or the {other} is {more}?
In the picture, which is {more}, the {name} or the {other}?|{name} or {other}, which is {more}?
Is the {name} or the {other} {more}?|Say which is {more}, the {name} or the {other}.
What looks {more}, the {name} or the {other}?|Choose the one that is {more}, the {name} or the {other}.
Which thing is {more}, the {name} or the {other}?|Take the {name} and the {other}. Which is {more}?
Looking at the {name} and the {other}, which is {more}?
"""
_OUTSIDE = """
What is the name of the {name}?|How old {is} the {name}?|Who bought the {name}?|Who took this picture?|What day is it?
How much {does} the {name} weigh?|Where was this picture taken?|What time is it there?|How much did the {name} cost?
What is behind the camera?|What happened before this picture?|Who owns the {name}?|What will happen next?
Which year is it?|What is the temperature?|What does the {name} smell like?|Why {is} the {name} there?
What is outside the picture?|What is under the {name}, where nobody can see?|What is the photographer called?
Whose {name} {is} this?|Which country is this?|How long {was} the {name} there?|Who made the {name}?
"""
_DESCRIPTION = """
Describe the picture.|What is in the image?|Describe what you see.|Write a caption for this picture.|What do you see?
What does the picture show?|Give a short description.|Tell me about this image.|Summarise the picture.
What is going on in the picture?|Caption this image.|Explain the image.|What is happening here?
Describe this image in a few sentences.|Can you describe the photo?|Say what is in the picture.
Please describe the scene.|What can be seen in this photo?|Give me a caption.|What objects are in the picture?
Put the picture into words.
"""

# Second turns, after a question whether the thing is there.
_LOCALISATION_AGAIN = """
Where?|Where {is} {it}?|And where {is} {it}?|In which part of the picture?|Where exactly {is} {it}?|Say where {it} {is}.
"""
_COLOUR_AGAIN = """
What colour {is} {it}?|What color {is} {it}?|And its colour?|Which colour?|Of what colour {is} {it}?|What is its color?
"""


def _read(table: str) -> tuple[str, ...]:
    return tuple(text.strip() for text in table.replace("\n", "|").split("|") if text.strip())


#: By form of question: its templates.
FORMS: dict[str, tuple[str, ...]] = {
    form: _read(table)
    for form, table in {
        "existence": _EXISTENCE,
        "counting": _COUNTING,
        "recognition_region": _RECOGNITION_REGION,
        "recognition_box": _RECOGNITION_BOX,
        "recognition_largest": _RECOGNITION_LARGEST,
        "recognition_largests": _RECOGNITION_LARGESTS,
        "recognition_sort": _RECOGNITION_SORT,
        "recognition_sorts": _RECOGNITION_SORTS,
        "recognition_either": _RECOGNITION_EITHER,
        "localisation": _LOCALISATION,
        "localisation_either": _LOCALISATION_EITHER,
        "localisation_box": _LOCALISATION_BOX,
        "localisation_which": _LOCALISATION_WHICH,
        "relation_object": _RELATION_OBJECT,
        "relation_subject": _RELATION_SUBJECT,
        "reading": _READING,
        "reading_which": _READING_WHICH,
        "reading_word": _READING_WORD,
        "reading_number": _READING_NUMBER,
        "colour": _COLOUR,
        "colour_either": _COLOUR_EITHER,
        "comparison": _COMPARISON,
        "outside": _OUTSIDE,
        "description": _DESCRIPTION,
        "localisation_again": _LOCALISATION_AGAIN,
        "colour_again": _COLOUR_AGAIN,
    }.items()
}
#: Questions whose answer is the verbalization itself, for training.
LISTINGS: tuple[str, ...] = ("Describe the picture with boxes.", "List everything in the image with its box.")

#: What is said around a question, `{q}` or `{Q}` with a capital.
FRAMES: tuple[str, ...] = _read("""
Please tell me: {q}|Could you please tell me: {q}|I would like to know: {q}|Hello! {Q}|Hi, {q}|Excuse me, {q}
{Q} Thank you.|{Q} Please.|Quick question: {q}|Look at the image. {Q}|Based on the picture, {q}
According to the image, {q}|Question: {Q}|Here is a picture. {Q}|Kindly answer: {q}
""")
#: What is said after a question whose answer is short.
SUFFIXES: tuple[str, ...] = _read("""
Answer the question using a single word or phrase.|Answer in one word.|Reply briefly.|Answer briefly.|Short answer:
Give a very brief answer.|Use one word or a short phrase.|Be brief.|Keep the answer short.
""")
_SHORT_FORMS = frozenset(FORMS) - {"description", "outside"}
#: What happens to a question at last, with its share.
_STYLES: dict[str, float] = {
    "as it is": 0.56,
    "lower": 0.1,
    "no mark": 0.08,
    "lower, no mark": 0.1,
    "upper": 0.06,
    "typo": 0.1,
}
_VERBS = ("is", "was", "does", "it")
_FRAME_SHARE, _SUFFIX_SHARE = 0.12, 0.12


@dataclass(frozen=True, slots=True)
class Worded:
    """A question in words, and whether training may have met their template and frame."""

    text: str
    is_trained: bool


def is_never_trained(number: int) -> bool:
    """Whether the wording at this place of a list is kept from training: every third is."""
    return number % 3 == 2


def name_slots(name: str) -> dict[str, str]:
    """What templates say of a name: its article, its plural, and the verbs that agree with it."""
    many = is_plural_name(name)
    verbs = ("are", "were", "do", "they") if many else ("is", "was", "does", "it")
    return {"name": name, "names": plural(name), "a": indefinite(name), **dict(zip(_VERBS, verbs, strict=True))}


@cache
def training_wordings() -> dict[str, tuple[str, ...]]:
    """By form, and of "frames" and "suffixes": the wordings that the training stream alone has besides."""
    return {form: tuple(texts) for form, texts in json.loads(_TRAINING_WORDINGS.read_text("utf-8")).items()}


@cache
def _wordings(form: str, is_trained: bool, has_more: bool) -> tuple[str, ...]:
    listed = {"frames": FRAMES, "suffixes": SUFFIXES}.get(form) or FORMS[form]
    kept = tuple(text for number, text in enumerate(listed) if is_never_trained(number) != is_trained)
    return kept + (training_wordings().get(form, ()) if has_more else ())


def _with_typo(rng: Random, text: str) -> str:
    """One slip in a longer word: two letters swapped, one left out or doubled."""
    words = text.split(" ")
    long = [k for k, word in enumerate(words) if len(word) > 3 and word.strip("?.,:").isalpha()]
    if not long:
        return text
    k = rng.choice(long)
    word, at = words[k], rng.randrange(1, len(words[k].strip("?.,:")) - 1)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    words[k] = rng.choice((swapped, word[:at] + word[at + 1 :], word[: at + 1] + word[at:]))
    return " ".join(words)


def word_question(
    rng: Random, form: str, slots: Mapping[str, str], may_be_new: bool, has_one_wording: bool = False
) -> Worded:
    """Put a question into words.

    Args:
        rng: source of randomness.
        form: one of `FORMS`.
        slots: what its templates name, see `name_slots`.
        may_be_new: whether half of the wordings are such as training never has; the others are `FORMS`', without the
            many more of training.
        has_one_wording: always the first template, without frame, suffix or slip.
    """
    is_trained = not may_be_new or rng.random() < 0.5
    slots = {**slots, **{key.capitalize(): value[:1].upper() + value[1:] for key, value in slots.items()}}
    if has_one_wording:
        return Worded(FORMS[form][0].format(**slots), True)
    has_more = not may_be_new
    text = rng.choice(_wordings(form, is_trained, has_more)).format(**slots)
    text = text[:1].upper() + text[1:]
    if rng.random() < _FRAME_SHARE:
        lower = text if text.startswith(("I ", "I'")) else text[:1].lower() + text[1:]
        text = rng.choice(_wordings("frames", is_trained, has_more)).format(q=lower, Q=text)
    if form in _SHORT_FORMS and rng.random() < _SUFFIX_SHARE:
        text = f"{text} {rng.choice(_wordings('suffixes', is_trained, has_more))}"
    style = rng.choices(list(_STYLES), list(_STYLES.values()))[0]
    if style == "typo":
        text = _with_typo(rng, text)
    if "no mark" in style:
        text = text.rstrip("?.:")
    if "lower" in style:
        text = text.lower()
    return Worded(text.upper() if style == "upper" else text, is_trained)
