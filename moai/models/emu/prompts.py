"""Emu's prompts: tokens, chat templates, and what of a generated text is the answer."""

from __future__ import annotations

import re

__all__ = ["CHAT_TEMPLATES", "IMAGE_TOKEN", "PROMPTS", "SPECIAL_TOKENS", "cut_answer"]

IMAGE_START_TOKEN, IMAGE_END_TOKEN, IMAGE_TOKEN = "[IMG]", "[/IMG]", "<image>"
PAD_TOKEN = "[PAD]"
USER_TOKEN, ASSISTANT_TOKEN = "[USER]", "[ASSISTANT]"
#: Behind the decoder's own vocabulary, in the order of the released weights; Emu-I has the last two.
SPECIAL_TOKENS = (PAD_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN, IMAGE_TOKEN)
INSTRUCT_TOKENS = (USER_TOKEN, ASSISTANT_TOKEN)

_IMAGE_SYSTEM = (
    "You will be presented with an image: [IMG]ImageContent[/IMG]. You will be able to see the image after I provide "
    "it to you. Please answer my questions based on the given image. "
)
_VIDEO_SYSTEM = (
    "You are a helpful assistant and you will be presented with a video consisting of multiple chronological images: "
    "[IMG]ImageContent[/IMG]. You will be able to see the video after I provide it to you. Please answer my questions "
    "based on the given video. "
)

#: How a conversation is written, by name. ``plain``: its parts as they are, without anything between them, as the
#: pretrained model reads them. The others are Emu-I's: what stands before and behind the last text of a user's turn.
PROMPTS = {
    "plain": ("", ""),
    "chat": ("", ""),
    "vqa": (
        " based on the content of the image and common sense, please provide an accurate answer consisting of only one "
        "word or phrase. ",
        " the answer is:",
    ),
    "caption": (
        "Please provide an accurate and concise description of the given image.",
        " The image depicts a photo of",
    ),
}

_PARTS = (
    "{%- set parts = [{'type': 'text', 'text': message['content']}] if message['content'] is string "
    "else message['content'] -%}"
)
_PLAIN = (
    "{%- for message in messages -%}" + _PARTS + "{%- for part in parts -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif part['type'] == 'video' -%}{{- '<image>' * part['video'] | length -}}"
    "{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endfor -%}"
)
# One image or one video is announced, as the released code does; several images are not.
_CHAT = (
    "{%- set seen = namespace(images=0, videos=0) -%}"
    "{%- for message in messages -%}{%- if message['content'] is not string -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set seen.images = seen.images + 1 -%}"
    "{%- elif part['type'] == 'video' -%}{%- set seen.videos = seen.videos + 1 -%}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endfor -%}"
    "{%- if seen.images == 1 and seen.videos == 0 -%}{{- IMAGE_SYSTEM -}}"
    "{%- elif seen.videos == 1 and seen.images == 0 -%}{{- VIDEO_SYSTEM -}}{%- endif -%}"
    "{%- for message in messages -%}" + _PARTS + "{%- set place = namespace(last=-1) -%}"
    "{%- for part in parts -%}{%- if part['type'] == 'text' -%}{%- set place.last = loop.index0 -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if message['role'] == 'assistant' -%}{{- ' [ASSISTANT]: ' -}}"
    "{%- elif message['role'] == 'user' -%}{{- ('' if loop.first else ' ') + '[USER]: ' -}}{%- endif -%}"
    "{%- for part in parts -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif part['type'] == 'video' -%}{{- '<image>' * part['video'] | length -}}"
    "{%- elif message['role'] == 'user' and loop.index0 == place.last -%}{{- ASKED -}}"
    "{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if message['role'] == 'user' and loop.last -%}{{- ' [ASSISTANT]:' + BEHIND -}}{%- endif -%}"
    "{%- endfor -%}"
)


def _build_template(name: str) -> str:
    if name == "plain":
        return _PLAIN
    before, behind = PROMPTS[name]
    asked = repr(before) if name == "caption" else f"{before!r} + part['text']"  # a caption is asked for in one way
    template = _CHAT.replace("ASKED", asked).replace("BEHIND", repr(behind))
    return template.replace("IMAGE_SYSTEM", repr(_IMAGE_SYSTEM)).replace("VIDEO_SYSTEM", repr(_VIDEO_SYSTEM))


CHAT_TEMPLATES = {name: _build_template(name) for name in PROMPTS}

#: Where a generated text stops being the answer: at what would be the next turn.
_CUT = re.compile(re.escape(USER_TOKEN) + "|" + re.escape(ASSISTANT_TOKEN))


def cut_answer(text: str) -> str:
    """The answer in a generated text.

    Args:
        text: As generated, special tokens left out.
    """
    return _CUT.split(text, maxsplit=1)[0].strip()
