"""Settings of a test: what is asked, where verbalizations come from, how answers are scored.

As YAML (``moai evaluate MODEL my_test.yaml``), every key optional but `path`::

    path: data/textvqa.parquet      # what training reads, or rows of image, question and answer(s)
    metric: vqa
    suffix: Answer the question using a single word or phrase.
    keys: {answers: answers, kind: category}
    cache: data/verbalizations      # written by `moai verbalize data/textvqa.parquet --out data/verbalizations`

Without `path` the test is Scenes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt

from moai.scenes.scenes import QUESTION_KINDS
from moai.settings import Count, Location, Number, Positive, load_settings, read_yaml, settings
from verbalizers import SCENE_FIELDS

__all__ = ["METRIC_NAMES", "SHORT_KINDS", "FileTest", "SceneTest", "TestSettings", "load_test_settings"]

METRIC_NAMES = ("scenes", "exact", "vqa", "anls", "relaxed", "yes_no", "letter", "box_iou", "cider")
#: Kinds of scenes' questions with one right answer.
SHORT_KINDS = tuple(kind for kind in QUESTION_KINDS if kind != "description")


@settings(kw_only=True)
class TestSettings:
    """What all tests have.

    Attributes:
        metric: How answers are scored (:mod:`moai.evaluation.metrics`); None = "scenes" for Scenes, else "exact".
        suffix: Put behind every question.
        ranks: Answers are chosen among a question's choices by log-likelihood, not generated.
        paraphrases: JSONL of ``{"question": "How many {name} are there?", "paraphrases": ["Count the {name}.", ...]}``:
            questions that one fits are asked in these words too.
        verbalizations: Where they come from: "truth" (of Scenes, with noise; of a file, the rows' `scene`), "live" (the
            model's verbalizers look), "cache" (`moai verbalize`), "none". None = "cache" where `cache` is named, else
            "truth" for Scenes, "live" for files.
        cache: The folder that `moai verbalize DATASET --out` wrote.
        fingerprint: Which verbalizations inside it; None = the only ones there.
        verbalizers: Kinds of findings that are verbalized; None = all, the others are left out.
        max_new_tokens: Longest answer in tokens; None = 24, and 160 for descriptions and captions.
        shots: Demonstrations in front of every question, for models that read them; 0 = two without their images, None
            = none at all.
        shots_from: JSONL of ``{"image", "question", "answer"}`` that they are taken from; of Scenes None = training
            scenes.
        shots_retrieved: The ones whose images are nearest in the model's features, else drawn at random.
        shots_seed: Of what is drawn.
    """

    __test__ = False

    metric: Literal[METRIC_NAMES] | None = None
    suffix: str = ""
    ranks: StrictBool = False
    paraphrases: Location | None = None
    verbalizations: Literal["truth", "live", "cache", "none"] | None = None
    cache: Location | None = None
    fingerprint: str | None = None
    verbalizers: tuple[str, ...] | None = None
    max_new_tokens: Positive | None = None
    shots: Count | None = None
    shots_from: Location | None = None
    shots_retrieved: StrictBool = False
    shots_seed: Count = 0

    @property
    def source(self) -> str:
        """Where verbalizations come from."""
        if self.verbalizations is not None:
            return self.verbalizations
        return "cache" if self.cache else "live"

    def __post_init__(self) -> None:
        if self.source == "cache" and self.cache is None:
            raise ValueError("verbalizations come from a cache, but `cache` names no folder. Name the --out folder.")


@settings(kw_only=True)
class SceneTest(TestSettings):
    """A test on scenes nobody trained on.

    Attributes:
        per_kind: Questions of each kind.
        kinds: Kinds of questions.
        split: Which scenes; "validation" to choose between checkpoints.
        seed: Seed of scenes and noise.
        image_size: Height and width in pixels.
        num_objects: Fewest and most objects per scene.
        sign_probability: How often a scene has a sign with words.
        noise: Strength of the errors in verbalizations made from the truth; 0 = the truth.
        names: The only things there are; none = all that Scenes know.
        has_one_wording: Each form of a question is asked in the same words.
    """

    per_kind: Annotated[StrictInt, Field(ge=2)] = 100
    kinds: tuple[Literal[QUESTION_KINDS], ...] = QUESTION_KINDS
    split: Literal["validation", "test"] = "test"
    seed: Count = 0
    image_size: Positive = 448
    num_objects: tuple[StrictInt, StrictInt] = (0, 9)
    sign_probability: Annotated[Number, Field(ge=0, le=1)] = 0.6
    noise: Annotated[Number, Field(ge=0)] = 1.0
    names: tuple[str, ...] = ()
    has_one_wording: StrictBool = False

    @property
    def source(self) -> str:
        """See :attr:`TestSettings.source`."""
        return self.verbalizations or ("cache" if self.cache else "truth")

    def __post_init__(self) -> None:
        TestSettings.__post_init__(self)
        if unknown := set(self.verbalizers or ()) - set(SCENE_FIELDS) if self.source == "truth" else None:
            raise ValueError(f"`verbalizers` must be among {sorted(SCENE_FIELDS)} for scenes' truth, got {unknown}.")


@settings(kw_only=True)
class FileTest(TestSettings):
    """A test of a file's questions.

    Attributes:
        path: `.json`, `.jsonl`, `.parquet`, a folder of Parquet files or a `datasets` folder. Rows are conversations
            as training reads them, every answer of which is asked for, or hold `image`, `question` and `answer` or
            `answers`; `kind`, `choices`, `id`, `scene` and `paraphrases` are optional.
        image_folder: Where relative image paths begin; None = beside the file.
        split: Split of a `datasets` folder that has several.
        column: Column of the images in a table; None = the only one that holds images.
        limit: Only the first rows, this many; None = all.
        keys: What the rows call these: ``{answers: answer_list, kind: category}``.
    """

    path: Location
    image_folder: Location | None = None
    split: str | None = None
    column: str | None = None
    limit: Positive | None = None
    keys: dict[Literal["question", "answers", "kind", "choices", "id"], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        TestSettings.__post_init__(self)
        if self.shots is not None and self.shots_from is None:
            raise ValueError("demonstrations come from a file of their own: name it in `shots_from`.")
        if self.metric == "scenes":
            raise ValueError("the metric scenes scores the questions of Scenes; name another for a file.")


def load_test_settings(test: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> TestSettings:
    """Settings of a test by what a user names.

    Args:
        test: ``"scenes"``, a file or folder of questions, a YAML file, or a mapping of settings.
        overrides: ``key=value`` words laid over them.

    Raises:
        ValueError: There is no such file, or a setting is unknown or wrong.
    """
    if isinstance(test, Mapping):
        content = dict(test)
    elif str(test) == "scenes":
        content = {}
    elif Path(test).suffix.lower() in (".yaml", ".yml"):
        content = read_yaml(test)
        if isinstance(content.get("path"), str):  # named relative to the file
            content["path"] = str(Path(test).parent / content["path"])
        for name in ("image_folder", "cache", "paraphrases", "shots_from"):
            if isinstance(content.get(name), str):
                content[name] = str(Path(test).parent / content[name])
    else:
        content = {"path": str(test)}
    is_file = "path" in content or any(word.startswith("path=") for word in overrides)
    return load_settings(FileTest if is_file else SceneTest, content, overrides)
