"""Look inside one answer: findings, verbalization, gate weights, the tokens' probabilities."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from moai.pipeline.answers import Answer
from moai.pipeline.pipeline import Pipeline
from verbalizers import SCENE_FIELDS, Scene, draw_scene
from verbalizers.core.scene import keep_kinds

from .html_report import embed_image, page, table

__all__ = ["Inspection", "inspect_answer", "write_inspection"]

_WIDTH = 448
_STYLE = """
figure { margin: 0; } .row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figcaption { font-size: .85rem; opacity: .75; } .map img { width: 132px; height: 132px; image-rendering: pixelated; }
.tokens span { padding: .1rem .15rem; border-radius: .2rem; white-space: pre-wrap; } .layers img { max-width: 100%; }
.layers figure[hidden] { display: none; } .text { white-space: pre-wrap; }
"""
_SCRIPT = """
for (const input of document.querySelectorAll("input[name=layer]"))
  input.addEventListener("change", () => {
    for (const figure of document.querySelectorAll(".layers figure"))
      figure.hidden = figure.dataset.layer !== input.value;
  });
"""


@dataclass(frozen=True)
class Inspection:
    """One answer and what it rests on.

    Attributes:
        image: The image.
        question: What was asked.
        answer: With its report.
        words: The prompt's language tokens, in the order of the routing's rows; empty where the model tells none.
        attended: Tokens of the verbalization, each with its share of what the answer rests on; empty where that cannot
            be told.
    """

    image: Image.Image
    question: str
    answer: Answer
    words: Sequence[str] = ()
    attended: Sequence[tuple[str, float]] = ()


def inspect_answer(
    pipeline: Pipeline, image: Image.Image, question: str, scene: Scene | None = None, **settings: Any
) -> Inspection:
    """Ask one question and keep all that the model tells.

    Args:
        pipeline: Of any model.
        image: The image.
        question: The question.
        scene: Findings at hand; None = the verbalizers look.
        **settings: As for :meth:`.Pipeline.answer_each`.
    """
    answer = pipeline(image, question, scene, is_reporting=True, output_scores=True, **settings)
    words, attended = pipeline.answering.explain(
        image, question, answer.scene, pipeline.settings, answer.answer or "", settings.get("options")
    )
    return Inspection(image, question, answer, words, attended)


def write_inspection(found: Inspection, title: str) -> str:
    """The page about one answer.

    Args:
        found: From :func:`inspect_answer`.
        title: Heading.
    """
    answer, routing = found.answer, found.answer.report.get("routing") or ()
    body = [
        f"<p>{escape(found.question)}</p><p><b>{escape(answer.answer or '')}</b></p>",
        *_tokens(answer.report.get("tokens") or ()),
        "<h2>What was found</h2>",
        _layers(found.image, answer.scene),
        "<h2>What was said of it</h2>",
        f'<p class="text">{escape(answer.auxiliary_text or "nothing")}</p>',
    ]
    if answer.missing:
        rows = [(kind, reason) for kind, reason in answer.missing.items()]
        body.append(table(("did not contribute", "because"), rows, 2))
    if found.attended:
        body += ["<h3>What the answer rests on most</h3>", _shade(found.attended)]
        body.append("<p>Shade: gradient of the answer's log-probability times the token's embedding, as a share.</p>")
    if choices := answer.report.get("choices"):
        body += ["<h2>Choices</h2>", table(("", "log-probability"), [(c, f"{v:.3f}") for c, v in choices.items()])]
    if routing:
        body += ["<h2>Who was listened to</h2>", *_routing(routing, found.words)]
    return page(title, body, _SCRIPT, _STYLE)


def _png(image: Image.Image, caption: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return embed_image(buffer.getvalue(), caption, "png")


def _layers(image: Image.Image, scene: Scene | None) -> str:
    """The image, everything found, and what each verbalizer found, one of them shown at a time."""
    drawings = {"image": image.convert("RGB")}
    if scene is not None:
        held = [kind for kind, name in SCENE_FIELDS.items() if getattr(scene, name) is not None]
        shown = {"all": scene} | {kind: keep_kinds(scene, [kind]) for kind in (*held, *scene.findings)}
        drawings |= {name: draw_scene(part, image) for name, part in shown.items()}
    first = "all" if "all" in drawings else "image"
    buttons, figures = [], []
    for name, drawing in drawings.items():
        drawing = drawing.convert("RGB")
        drawing.thumbnail((_WIDTH, _WIDTH))
        mark = " checked" if name == first else ""
        label = escape(name.replace("_", " "))
        buttons.append(f'<label><input type="radio" name="layer" value="{escape(name)}"{mark}> {label}</label>')
        hidden = "" if name == first else " hidden"
        figures.append(f'<figure data-layer="{escape(name)}"{hidden}>{_png(drawing, name)}</figure>')
    return f'<p class="row">{"".join(buttons)}</p><div class="layers">{"".join(figures)}</div>'


def _tokens(tokens: Sequence[Mapping[str, Any]]) -> list[str]:
    """The answer's tokens with their probabilities and the likeliest others."""
    if not tokens:
        return []
    rows = [
        (
            repr(token["token"])[1:-1],
            f"{100 * token['probability']:.1f} %",
            ", ".join(f"{text!r} {100 * share:.1f} %" for text, share in token.get("others", ())),
        )
        for token in tokens
    ]
    return ["<h2>How sure each token was</h2>", table(("token", "probability", "likeliest others"), rows, 1)]


def _shade(weights: Sequence[tuple[str, float]]) -> str:
    """Tokens in order, darker where they weigh more."""
    largest = max((share for _, share in weights), default=0.0) or 1.0
    spans = []
    for token, share in weights:
        colour = f"background:rgb(255 140 0 / {share / largest:.2f})"
        spans.append(f'<span style="{colour}" title="{100 * share:.2f} %">{escape(token)}</span>')
    return f'<p class="tokens">{"".join(spans)}</p>'


def _routing(routing: Sequence[Any], words: Sequence[str]) -> list[str]:
    """Per mixer layer: heat maps of each expert's weight over the image's patches, and over the prompt's words."""
    parts = []
    for layer in routing:
        parts.append(f"<h3>Layer {layer.layer_idx}</h3>")
        side = round(len(layer.image) ** 0.5)
        if side and side * side == len(layer.image):
            weights = layer.image.numpy().reshape(side, side, -1)
            figures = [
                f'<figure class="map">{_png(_heat_map(weights[..., k]), name)}<figcaption>image: {escape(name)}, mean '
                f"{100 * weights[..., k].mean():.0f} %</figcaption></figure>"
                for k, name in enumerate(layer.image_experts)
            ]
            parts.append(f'<div class="row">{"".join(figures)}</div>')
        means = layer.language.mean(dim=0).tolist() if len(layer.language) else []
        for k, mean in enumerate(means):
            said = f"language: {layer.language_experts[k]}, mean {100 * mean:.0f} %"
            if len(words) == len(layer.language):
                pairs = list(zip(words, layer.language[:, k].tolist(), strict=True))
                parts.append(f"<figcaption>{escape(said)}</figcaption>{_shade(pairs)}")
            else:
                parts.append(f"<p>{escape(said)}</p>")
    return parts


def _heat_map(weights: np.ndarray) -> Image.Image:
    """Weights in [0, 1] from dark blue over orange to white; one pixel per patch."""
    stops = np.array([[20, 24, 82], [190, 60, 90], [250, 160, 40], [255, 250, 220]], np.float64)
    place = np.clip(weights, 0, 1) * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    share = (place - low)[..., None]
    return Image.fromarray((stops[low] * (1 - share) + stops[low + 1] * share).astype(np.uint8))
