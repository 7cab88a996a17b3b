"""OpenFlamingo's prompts: tokens, chat templates, and what of a generated text is the answer."""

from __future__ import annotations

__all__ = ["CHAT_TEMPLATES", "END_OF_CHUNK_TOKEN", "IMAGE_TOKEN", "PAD_TOKEN", "PROMPTS", "STOPS", "cut_answer"]

IMAGE_TOKEN = "<image>"
END_OF_CHUNK_TOKEN = "<|endofchunk|>"
PAD_TOKEN = "<PAD>"

#: How a question is written, by name: what stands before and behind the last text of a user's turn.
PROMPTS = {"vqa": ("Question:", " Short answer:"), "caption": ("", "Output:"), "plain": ("", "")}
DEFAULT_PROMPT = "vqa"

# A conversation is the few-shot prompt: images and texts of a user's turn in reading order, an assistant's turn is a
# demonstration's answer, which ends its chunk; a line break stands between demonstrations.
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set parts = [{'type': 'text', 'text': message['content']}] if message['content'] is string "
    "else message['content'] -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- for part in parts -%}{{- part['text'] -}}{%- endfor -%}"
    "{{- '<|endofchunk|>' -}}{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}"
    "{%- else -%}"
    "{%- set place = namespace(last=-1) -%}"
    "{%- for part in parts if message['role'] == 'user' -%}"
    "{%- if part['type'] == 'text' -%}{%- set place.last = loop.index0 -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- for part in parts -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif loop.index0 == place.last -%}{{- BEFORE + ASKED + BEHIND -}}"
    "{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def _build_template(name: str) -> str:
    before, behind = PROMPTS[name]
    asked = "''" if name == "caption" else "part['text']"  # a caption is asked for in one way only
    return _TEMPLATE.replace("BEFORE", repr(before)).replace("ASKED", asked).replace("BEHIND", repr(behind))


CHAT_TEMPLATES = {"default": _build_template(DEFAULT_PROMPT)} | {name: _build_template(name) for name in PROMPTS}

#: Where a generated text stops being the answer, as the released evaluation cuts it.
STOPS: dict[str, tuple[str, ...]] = {
    "vqa": ("Question", "Answer", "Short", ", "),
    "caption": ("Output",),
    "plain": (),
}


def cut_answer(text: str, prompt: str = DEFAULT_PROMPT) -> str:
    """The answer in a generated text.

    Args:
        text: As generated, special tokens left out.
        prompt: One of :data:`PROMPTS`.
    """
    text = text.strip()
    found = [place for stop in STOPS[prompt] if (place := text.find(stop)) >= 0]
    return text[: min(found, default=None)].strip()
