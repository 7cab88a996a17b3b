"""The prompts: Jinja chat templates of the released MoAI, and ChatML for other decoders.

The release writes one prompt for evaluation (InternLM2's turn markers) and one for its demo (``USER:`` /
``ASSISTANT:``); both open with the same sentence followed by the image. A conversation renders to exactly these
strings when it holds one image and one question.
"""

from __future__ import annotations

from collections.abc import Collection

#: First words of every prompt of the release.
SYSTEM_PROMPT = "AI assistant should give helpful and detailed answers to user after fully understanding an image."

#: Turn headers that are plain words, in the demo prompt: no tokenizer knows them as control tokens.
TURN_HEADERS = ("USER:", "ASSISTANT:")

# Shared head: the system sentence, then one placeholder per image of the whole conversation.
_HEAD = (
    "{%- macro text(message) -%}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}"
    "{%- macro pictures(message) -%}"
    "{%- if message['content'] is not string -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- IMAGE -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}"
    "{%- if messages[0]['role'] == 'system' -%}{{- text(messages[0]) -}}"
    "{%- else -%}{{- SYSTEM -}}{%- endif -%}"
).replace("SYSTEM", repr(SYSTEM_PROMPT))


def _said(content: str) -> str:
    """Mark what an assistant says, its end-of-turn token included, for `return_assistant_tokens_mask`."""
    return (
        "{%- if message['role'] == 'assistant' -%}{%- generation -%}"
        + content
        + "{%- endgeneration -%}{%- else -%}"
        + content
        + "{%- endif -%}"
    )


_SPACED_IMAGE = "' ' + (image_token | default('<image>'))"

#: Evaluation prompt of the release (arch_moai.py, eval_process): InternLM2 turn markers.
MOAI_CHAT_TEMPLATE = (
    _HEAD.replace("IMAGE", _SPACED_IMAGE) + "{%- for message in messages -%}{{- pictures(message) -}}{%- endfor -%}"
    "{{- ' ' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] != 'system' -%}"
    "{{- '[UNUSED_TOKEN_146]' + message['role'] + '\\n' -}}"
    + _said("{{- text(message) -}}{{- '[UNUSED_TOKEN_145]' -}}")
    + "{{- '\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '[UNUSED_TOKEN_146]assistant\\n' -}}{%- endif -%}"
)

#: Demo prompt of the release (arch_moai.py, demo_process).
DEMO_CHAT_TEMPLATE = (
    _HEAD.replace("IMAGE", _SPACED_IMAGE) + "{%- for message in messages -%}{{- pictures(message) -}}{%- endfor -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- ' USER: ' -}}{{- text(message) -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- ' ASSISTANT:' -}}"
    "{%- generation -%}{{- ' ' -}}{{- text(message) -}}{{- eos_token -}}{%- endgeneration -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}"
)

#: ChatML (Qwen, SmolLM2 and others); images stand in front of the text of their own turn.
CHATML_CHAT_TEMPLATE = (
    "{{- '<|im_start|>system\\n' -}}"
    + _HEAD.replace("IMAGE", "(image_token | default('<image>')) + '\\n'")
    + "{{- '<|im_end|>\\n' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] != 'system' -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{{- pictures(message) -}}" + _said("{{- text(message) -}}{{- '<|im_end|>' -}}") + "{{- '\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


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
