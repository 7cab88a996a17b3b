"""The fixed questions of the ablations, and how a model in training answers them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.roles import IMAGE_ROLE, LANGUAGE_ROLE
from moai.processing.tokenization_internlm2 import InternLM2Tokenizer
from moai.scenes.scenes import Scenes, add_noise
from moai.training.multimodal_training import normalise_pictures
from moai.training.text_pretraining import PromptIds
from verbalizers.core.scene import render_segmentation_map, verbalize_scene
from verbalizers.core.structures import Scene

from .ablation_config import AblationTest

__all__ = ["AblationQuestion", "answer_test", "collect_test"]


@dataclass(frozen=True)
class AblationQuestion:
    """A question about a test scene.

    Attributes:
        kind: Its kind.
        question: The question.
        answer: What is right, from the truth.
        found: What imperfect verbalizers found; shared by the questions of a scene.
        image: uint8 (H, W, 3), None in tests without pictures.
    """

    kind: str
    question: str
    answer: str
    found: Scene
    image: np.ndarray | None


def collect_test(test: AblationTest, image_size: int, with_pictures: bool) -> list[AblationQuestion]:
    """The test's questions, the same on every run.

    Args:
        test: What to ask.
        image_size: Height and width of the scenes in pixels.
        with_pictures: Whether pictures are painted too.
    """
    missing = dict.fromkeys(test.kinds, test.per_kind)
    asked: list[AblationQuestion] = []
    scenes = Scenes("test", seed=test.seed, image_size=image_size, num_objects=test.num_objects, kinds=test.kinds)
    for sample in scenes:
        wanted = [one for one in sample.questions if missing[one.kind] > 0]
        if wanted:
            found = add_noise(sample.truth, Random(f"{test.seed} {sample.index}"), test.noise)
            image = sample.image if with_pictures else None
        for one in wanted:
            if missing[one.kind] > 0:
                missing[one.kind] -= 1
                asked.append(AblationQuestion(one.kind, one.question, one.answer, found, image))
        if not any(missing.values()):
            return asked
    raise AssertionError("the stream of scenes never ends")


def _pad_left(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[fill] * (width - len(row)) + row for row in rows])


@torch.no_grad()
def answer_test(
    model: MoAIForConditionalGeneration,
    tokenizer: InternLM2Tokenizer,
    prompt: PromptIds,
    asked: list[AblationQuestion],
    kinds: tuple[str, ...],
    routing: object,
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers of one batch.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        prompt: Fixed ids around a question.
        asked: The batch.
        kinds: Verbalizers that speak.
        routing: See :func:`mixer.resolve_routing`.
        max_new_tokens: Bound on each answer.
    """
    encode, fill = tokenizer.sp_model.encode, tokenizer.eos_token_id
    places: dict[int, int] = {}
    owners = torch.tensor([places.setdefault(id(one.found), len(places)) for one in asked])
    shown = {id(one.found): one for one in asked}
    said = [[prompt.opening[0], *encode(verbalize_scene(one.found, kinds))] for one in shown.values()]
    width = max(map(len, said))
    words = torch.tensor([row + [0] * (width - len(row)) for row in said])
    mask = (torch.arange(width) < torch.tensor([len(row) for row in said])[:, None]).long()
    features = maps = None
    image_ids: list[int] = []
    if asked[0].image is not None:
        pictures = normalise_pictures(np.stack([one.image for one in shown.values()]))
        features = model.model.get_image_features(pictures, return_dict=True).pooler_output[owners]
        painted = [
            render_segmentation_map(one.found.segments if "segmentation" in kinds else None, one.image.shape[:2])
            for one in shown.values()
        ]
        maps = normalise_pictures(np.stack(painted))
        image_ids = [model.config.image_token_id] * model.config.image_seq_length
    states = model.model.get_auxiliary_states(words, mask, maps)[owners]
    rows, roles = [], []
    for one in asked:
        question = [*prompt.before_question, *encode(f" {one.question}"), *prompt.after_question]
        rows.append([*prompt.opening, *image_ids, *question])
        role = [LANGUAGE_ROLE] * len(prompt.opening) + [IMAGE_ROLE] * len(image_ids)
        roles.append(role + [LANGUAGE_ROLE] * len(question))
    ids = _pad_left(rows, fill)
    generated = model.generate(
        input_ids=ids,
        attention_mask=_pad_left([[1] * len(row) for row in rows], 0),
        mm_token_type_ids=_pad_left(roles, 0),
        auxiliary_states=states,
        image_features=features,
        routing=routing,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=fill,
    )
    texts = tokenizer.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
