"""CIDEr-D: agreement of captions with several references (Vedantam et al., arXiv 1411.5726, section 5).

Words are lower case without punctuation, as the benchmark's tokenizer leaves them; nothing is stemmed, as in the
released evaluation of COCO captions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

__all__ = ["CiderScorer", "tokenize_caption"]

_LONGEST = 4  # words of an n-gram
_SIGMA = 6.0  # of the penalty on another length
_WORD = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:['’][^\W_]+)*")
_Vector = Mapping[tuple[str, ...], float]


def tokenize_caption(text: str) -> list[str]:
    """Words of a caption; "isn't" is two, as in the Penn treebank."""
    words = []
    for word in _WORD.findall(text.lower()):
        if word.endswith("n't") and len(word) > 3:
            words += [word[:-3], "n't"]
        elif "'" in word:
            words += [word[: word.index("'")], word[word.index("'") :]]
        else:
            words.append(word)
    return words


def _count(text: str) -> Counter[tuple[str, ...]]:
    words = tokenize_caption(text)
    return Counter(tuple(words[i : i + n]) for n in range(1, _LONGEST + 1) for i in range(len(words) - n + 1))


class CiderScorer:
    """Scores captions against references whose rare n-grams count more.

    Args:
        references: Of all images of the test, one sequence of captions per image: an n-gram is as rare as few images
            have it in their references.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        documents = Counter(gram for texts in references for gram in {g for text in texts for g in _count(text)})
        self._documents, self._log_images = documents, math.log(float(len(references))) if references else 0.0

    def score(self, caption: str, references: Sequence[str]) -> float:
        """CIDEr-D of one caption, in [0, 10]: the mean over the references and over n-grams of 1 to 4 words."""
        given, total = self._weigh(_count(caption)), 0.0
        for reference in references:
            wanted = self._weigh(_count(reference))
            difference = given[2] - wanted[2]
            penalty = math.exp(-(difference**2) / (2 * _SIGMA**2))
            for mine, theirs, norm, other in zip(given[0], wanted[0], given[1], wanted[1], strict=True):
                product = sum(
                    min(weight, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, weight in mine.items()
                )
                total += penalty * (product / (norm * other) if norm and other else product)
        return 10 * total / _LONGEST / len(references)

    def _weigh(self, counts: Counter[tuple[str, ...]]) -> tuple[list[_Vector], list[float], int]:
        """tf-idf vectors by length of n-gram, their norms, and the number of pairs of words: the length."""
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * (self._log_images - math.log(max(1.0, self._documents[gram])))
        norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in vectors]
        return vectors, norms, sum(count for gram, count in counts.items() if len(gram) == 2)
