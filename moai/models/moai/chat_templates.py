"""The prompts: Jinja chat templates of the released MoAI, and ChatML for other decoders.

The release writes one prompt for evaluation (InternLM2's turn markers) and one for its demo (``USER:`` /
``ASSISTANT:``); both open with the same sentence followed by the image. A conversation renders to exactly these
strings when it holds one image and one question behind it; an image between words stands between words.
"""

from __future__ import annotations

from collections.abc import Collection

#: First words of every prompt of the release.
SYSTEM_PROMPT = "AI assistant should give helpful and detailed answers to user after fully understanding an image."

#: Turn headers that are plain words, in the demo prompt: no tokenizer knows them as control tokens.
TURN_HEADERS = ("USER:", "ASSISTANT:")

# Shared head: the parts of a message in reading order, then the system sentence. `images` are the images before a
# message's first words, which each prompt has a place for; `text` is the rest, where images stand between the words.
_HEAD = (
    "{%- macro pictures(message, before, after) -%}"
    "{%- if message['content'] is not string -%}"
    "{%- set seen = namespace(words=false) -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' and part['text'] -%}{%- set seen.words = true -%}"
    "{%- elif part['type'] == 'image' and not seen.words -%}"
    "{{- before + (image_token | default('<image>')) + after -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}"
    "{%- macro text(message) -%}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- set seen = namespace(words=false) -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' and part['text'] -%}{%- set seen.words = true -%}{{- part['text'] -}}"
    "{%- elif part['type'] == 'image' and seen.words -%}{{- image_token | default('<image>') -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}"
    "{%- if messages[0]['role'] == 'system' -%}{{- text(messages[0]) -}}"
    "{%- else -%}{{- SYSTEM -}}{%- endif -%}"
).replace("SYSTEM", repr(SYSTEM_PROMPT))
# The release's place of an image, in front of all turns: for those before the first words of the conversation, lest
# a later image come before an earlier one. Those of later turns stand in front of their own turn's words.
_FIRST_IMAGES = (
    "{%- for message in messages if message['role'] != 'system' -%}"
    "{%- if loop.first -%}{{- pictures(message, ' ', '') -}}{%- endif -%}"
    "{%- endfor -%}"
)
_TURN = "{%- if not is_first -%}{{- pictures(message, '', '\\n') -}}{%- endif -%}{{- text(message) -}}"


def _said(content: str) -> str:
    """Mark what an assistant says, its end-of-turn token included, for `return_assistant_tokens_mask`."""
    return (
        "{%- if message['role'] == 'assistant' -%}{%- generation -%}"
        + content
        + "{%- endgeneration -%}{%- else -%}"
        + content
        + "{%- endif -%}"
    )


#: Evaluation prompt of the release (arch_moai.py, eval_process): InternLM2 turn markers.
MOAI_CHAT_TEMPLATE = (
    _HEAD + _FIRST_IMAGES + "{{- ' ' -}}"
    "{%- for message in messages if message['role'] != 'system' -%}{%- set is_first = loop.first -%}"
    "{{- '[UNUSED_TOKEN_146]' + message['role'] + '\\n' -}}"
    + _said(_TURN + "{{- '[UNUSED_TOKEN_145]' -}}")
    + "{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '[UNUSED_TOKEN_146]assistant\\n' -}}{%- endif -%}"
)

#: Demo prompt of the release (arch_moai.py, demo_process).
DEMO_CHAT_TEMPLATE = (
    _HEAD + _FIRST_IMAGES + "{%- for message in messages if message['role'] != 'system' -%}"
    "{%- set is_first = loop.first -%}"
    "{%- if message['role'] == 'user' -%}{{- ' USER: ' -}}" + _TURN + "{%- elif message['role'] == 'assistant' -%}"
    "{{- ' ASSISTANT:' -}}{%- generation -%}{{- ' ' -}}" + _TURN + "{{- eos_token -}}{%- endgeneration -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}"
)

#: ChatML (Qwen, SmolLM2 and others); images stand where they do in their own turn, a line for each before its words.
CHATML_CHAT_TEMPLATE = (
    "{{- '<|im_start|>system\\n' -}}" + _HEAD + "{{- '<|im_end|>\\n' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] != 'system' -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    + _said("{{- pictures(message, '', '\\n') -}}{{- text(message) -}}{{- '<|im_end|>' -}}")
    + "{{- '\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def without_capitals(text: str) -> str:
    """A question in capitals in small letters; any other as it is.

    Tokenizers of ordinary text know words in capitals as pieces of a letter or two: a small model hardly reads them.
    """
    return text.lower() if text.isupper() else text


def reading_capitals(template: str) -> str:
    """One of the templates above, that reads a user's words :func:`without_capitals`."""
    for said in ("message['content']", "part['text']"):
        read = f"({said} | lower if message['role'] == 'user' and {said}.isupper() else {said})"
        template = template.replace("{{- " + said + " -}}", "{{- " + read + " -}}")
    return template


def default_chat_templates(control_tokens: Collection[str]) -> dict[str, str]:
    """Templates that fit a tokenizer.

    Args:
        control_tokens: Literals the tokenizer knows as control tokens.

    Returns:
        "default" for answering: the release's evaluation prompt where InternLM2's turn markers are known, ChatML
        where ``<|im_start|>`` is, else the demo prompt, which needs no control token. "demo": always the demo prompt.
    """
    if "[UNUSED_TOKEN_146]" in control_tokens and "[UNUSED_TOKEN_145]" in control_tokens:
        default = MOAI_CHAT_TEMPLATE
    elif "<|im_start|>" in control_tokens and "<|im_end|>" in control_tokens:
        default = CHATML_CHAT_TEMPLATE
    else:
        default = DEMO_CHAT_TEMPLATE
    return {"default": default, "demo": DEMO_CHAT_TEMPLATE}
