"""Encoding of single samples: prompts, answers and auxiliary texts to token ids.

What is "language" (role 2) follows the released code: every attended prompt token that is no image token, BOS
included. Answer tokens and padding have role 0, so the mixers leave them alone; `answer_turns` tells where a rendered
conversation stops being prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix

from ...processing.control_tokens import ControlTokenGuard
from ...processing.sample_batching import pad_rows
from ...processing.token_roles import IGNORE_INDEX, IMAGE_ROLE, LANGUAGE_ROLE, NO_ROLE
from .answer_turns import TurnMarks, locate_answer
from .token_offsets import expand_placeholders, locate_tokens

_NUM_KEPT_PROMPTS = 64


@dataclass(frozen=True)
class SampleEncoder:
    """Encodes samples for one tokenizer.

    Args:
        guard: The tokenizer with its line between prompt and data.
        image_token: Placeholder of one image.
        num_image_tokens: Tokens that one placeholder becomes.
        turn_marks: Of the chat templates whose prompts are encoded.
    """

    guard: ControlTokenGuard
    image_token: str
    num_image_tokens: int
    turn_marks: tuple[TurnMarks, ...] = ()

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder."""
        return self.guard.tokenizer.convert_tokens_to_ids(self.image_token)

    @property
    def pad_id(self) -> int:
        """Padding id; any id will do, since masks say what is padding."""
        tokenizer = self.guard.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @cached_property
    def _known_ids(self) -> dict[str, list[int]]:
        return {}

    def _encode_prompt(self, prompt: str) -> list[int]:
        """Ids of a prompt, kept for a while: it is measured before it is answered."""
        if len(self._known_ids) > _NUM_KEPT_PROMPTS:
            self._known_ids.clear()
        ids = self._known_ids.get(prompt)
        if ids is None:
            ids = self._known_ids[prompt] = self.guard.encode(prompt)
        return ids

    def encode_sample(
        self, prompt: str, answer: str | None = None, add_special_tokens: bool = True
    ) -> dict[str, list[int]]:
        """Encode one prompt, and the answer to learn.

        Args:
            prompt: Rendered prompt; its placeholders and control tokens count.
            answer: Target, as data, or `None`.
            add_special_tokens: Whether BOS is put in front of a prompt that does not begin with it.

        Returns:
            `input_ids` (placeholders expanded), `mm_token_type_ids`, and `labels` if there is an answer.
        """
        prefix, ids = [], self._encode_prompt(prompt)
        num_asked = self._count_prompt(prompt, ids)
        bos = self.guard.tokenizer.bos_token
        if add_special_tokens and not (bos and prompt.startswith(bos)):
            prefix = self.guard.prefix_ids
        image_id, expanded, roles = self.image_token_id, [], []
        for place, token in enumerate([*prefix, *ids], start=-len(prefix)):
            count = self.num_image_tokens if token == image_id else 1
            role = IMAGE_ROLE if token == image_id else LANGUAGE_ROLE
            expanded += [token] * count
            roles += [role if place < num_asked else NO_ROLE] * count
        if answer is None:
            return {"input_ids": expanded, "mm_token_type_ids": roles}
        target = self.encode_answer(answer, is_mid_line=not self._ends_turn_header(prompt, ids))
        return {
            "input_ids": expanded + target,
            "mm_token_type_ids": roles + [NO_ROLE] * len(target),
            "labels": [IGNORE_INDEX] * len(expanded) + target,
        }

    def add_offsets(self, sample: dict[str, list], prompt: str) -> None:
        """Add `offset_mapping`, the characters of each token in the prompt with its placeholders expanded.

        Args:
            sample: What `encode_sample` made of the prompt, without an answer.
            prompt: The rendered prompt.

        Raises:
            ValueError: The sample has an answer, which stands in no prompt, or the tokenizer is not a fast one.
        """
        if "labels" in sample:
            raise ValueError("`return_offsets_mapping` tells where a prompt's tokens stand. Leave `answers` out.")
        spans = locate_tokens(self.guard, prompt)
        spans = expand_placeholders(self._encode_prompt(prompt), spans, self.image_token_id, self.num_image_tokens)
        num_special = len(sample["input_ids"]) - len(spans)  # BOS stands nowhere
        sample["offset_mapping"] = [(0, 0)] * num_special + spans

    def _count_prompt(self, prompt: str, ids: list[int]) -> int:
        """How many ids of a rendered conversation are prompt; one that reaches into the answer is not."""
        begin = locate_answer(prompt, self.turn_marks)
        return len(ids) if begin is None else len(commonprefix([ids, self.guard.encode(prompt[:begin])]))

    def _ends_turn_header(self, prompt: str, ids: list[int]) -> bool:
        """Whether a prompt ends in a line break or control token, behind which an answer begins without a space."""
        return prompt[-1].isspace() or ids[-1] in self.guard.forbidden_ids

    def encode_answer(self, answer: str, is_mid_line: bool = False) -> list[int]:
        """Ids of an answer and EOS.

        Args:
            answer: Text, as data.
            is_mid_line: Whether a space joins it to what stands before ("ASSISTANT: yes").
        """
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(
                f"an answer must be text, got {answer!r}. Leave samples without an answer out of training."
            )
        text = " " + answer if is_mid_line else answer
        return [*self.guard.encode_continuation(self.guard.escape(text)), self.guard.tokenizer.eos_token_id]

    def encode_auxiliary(self, index: int, text: str, limit: int | None = None) -> list[int]:
        """Ids of one auxiliary text, BOS in front as in the release.

        Args:
            index: Position in the batch, for messages.
            text: What the verbalizers said; "" = they found nothing.
            limit: Most tokens that are kept; a longer text loses its end, with a warning.
        """
        if not isinstance(text, str):
            raise ValueError(f"auxiliary text {index} must be a string or None, got {type(text).__name__}.")
        ids = self.guard.prefix_ids + self.guard.encode_data(text)
        if limit is not None and len(ids) > limit:
            warnings.warn(
                f"auxiliary text {index} has {len(ids)} tokens and was cut to its first {limit} "
                "(`max_auxiliary_length`): what the last verbalizers found is missing."
            )
        return ids[:limit]

    def pad_samples(
        self,
        samples: Sequence[dict[str, list[int]]],
        padding: bool | str = True,
        side: str = "left",
        length: int | None = None,
        multiple_of: int | None = None,
    ) -> dict[str, list[list[int]]]:
        """Pad ids, mask, roles and labels of all samples alike.

        Args:
            samples: Results of `encode_sample`.
            padding: True / "longest", "max_length", or False.
            side: "left" or "right".
            length: Target of "max_length".
            multiple_of: Round the padded length up.
        """
        if side not in ("left", "right"):
            raise ValueError(f"`padding_side` must be 'left' or 'right', got {side!r}.")
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"`padding` must be True, False, 'longest' or 'max_length', got {padding!r}.")
        if padding == "max_length" and length is None:
            raise ValueError("`padding='max_length'` needs `max_length`, got none. Pass max_length=... as well.")
        rows = {"input_ids": [sample["input_ids"] for sample in samples]}
        rows["attention_mask"] = [[1] * len(ids) for ids in rows["input_ids"]]
        for key in ("mm_token_type_ids", "labels", "offset_mapping"):
            if key in samples[0]:
                rows[key] = [sample[key] for sample in samples]
        if padding in (False, "do_not_pad"):
            return rows
        fill = {
            "input_ids": self.pad_id,
            "attention_mask": 0,
            "mm_token_type_ids": NO_ROLE,
            "labels": IGNORE_INDEX,
            "offset_mapping": (0, 0),
        }
        target = length if padding == "max_length" else None
        return {key: pad_rows(values, fill[key], side, target, multiple_of) for key, values in rows.items()}

    def too_long(self, index: int, sample: dict[str, list[int]], limit: int, can_cut: bool) -> ValueError:
        """The error for a sample above the limit, with both numbers."""
        length, images = len(sample["input_ids"]), sample["input_ids"].count(self.image_token_id)
        advice = "Shorten the question, raise `max_length`, or pass truncation=True to drop its end."
        if not can_cut:
            advice = "Shorten the text or raise `max_length`; only plain `questions` can be truncated."
        return ValueError(
            f"prompt {index} has {length} tokens ({images} of them for images), `max_length` is {limit}. {advice}"
        )
