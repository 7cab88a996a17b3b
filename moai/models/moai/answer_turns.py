"""Where the answer begins in a rendered conversation: what is prompt, and what bypasses the mixture.

A prompt ends where the assistant is to speak, and all of it is mixed, the answers of earlier turns too, as in the
release. Text that goes on behind that place is answer, as `generate` would have written it:

- an assistant turn that is to be continued: what stands in it has role 0, everything before it is prompt;
- a conversation that ends with a finished assistant turn, which is there to learn from: from its first answer on
  everything has role 0, for the experts look ahead, and a loss may lie on any of its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

#: Contents of the turns by which a template is asked (noncharacters, which no template writes by itself).
_QUESTION, _ANSWER = "\ufdd1", "\ufdd2"


class TurnMarks(NamedTuple):
    """What a chat template writes around an assistant turn.

    Attributes:
        header: In front of it, as far as a prompt to be answered has it too.
        end: Behind it, without white space at its sides; "" if nothing.
    """

    header: str
    end: str


def find_turn_marks(template: str, **variables: Any) -> TurnMarks | None:
    """Ask a chat template for its marks by rendering a question and an answer.

    Args:
        template: Jinja template.
        **variables: Its variables besides the messages, the special tokens among them.

    Returns:
        None where it has no header by which an assistant turn could be told.
    """
    question = {"role": "user", "content": [{"type": "text", "text": _QUESTION}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}

    def render(*messages: dict[str, Any], **options: Any) -> str:
        return render_jinja_template([list(messages)], chat_template=template, **options, **variables)[0][0]

    try:
        asked, answered = render(question), render(question, answer)
        prompt = render(question, add_generation_prompt=True)
    except (TemplateError, TypeError):  # a template may refuse a conversation, or want contents of another form
        return None
    before, found, behind = answered.partition(_ANSWER)
    if not found or not before.startswith(asked):
        return None
    header = before[len(asked) :]
    if prompt.startswith(asked):
        header = commonprefix([header, prompt[len(asked) :]]) or header
    return TurnMarks(header, behind.strip()) if header.strip() else None


def locate_answer(text: str, marks: Sequence[TurnMarks]) -> int | None:
    """Locate the first character that is answer and not prompt.

    Args:
        text: A rendered conversation.
        marks: Those of the templates that may have rendered it.

    Returns:
        None where all of it is prompt.
    """
    for header, end in marks:
        before, found, last_turn = text.rpartition(header)
        if not found:
            continue
        content, is_finished, later = last_turn.partition(end) if end else (last_turn, "", "")
        if later.strip() or not last_turn.strip():
            return None  # it is the user who speaks last, or the assistant has said nothing yet
        first = text.index(header) if is_finished else len(before)
        return first + len(header)
    return None


__all__ = ["TurnMarks", "find_turn_marks", "locate_answer"]
