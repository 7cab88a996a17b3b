"""The report of an evaluation: one HTML file that needs no network, every text in it escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from verbalizers.core.durable_files import atomic_file
from verbalizers.core.valid_text import make_valid

from .calibration import format_confidence, tabulate
from .conditions import MODEL
from .loading import Test
from .result_folder import IMAGES_FOLDER
from .tables import format_difference, format_share

__all__ = ["page", "table", "write_report"]

#: So many answers stand in a report; all are in samples.jsonl.
_MAX_ROWS = 3000
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #8889; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; margin: .8rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
article { border-top: 1px solid var(--line); padding: .8rem 0; display: flex; gap: 1rem; flex-wrap: wrap; }
article > div { flex: 1 1 24rem; min-width: 0; overflow-wrap: anywhere; }
article img { width: 320px; max-width: 100%; height: auto; align-self: flex-start; image-rendering: auto; }
.right .given { color: #17803d; } .wrong .given { color: #c0262d; } .dim { opacity: .7; }
details pre { white-space: pre-wrap; margin: .3rem 0; }
form { display: flex; gap: 1rem; flex-wrap: wrap; margin: 1rem 0; }
[hidden] { display: none; }
"""
# Many questions are about one image: each stands in the page once.
_SCRIPT = """
const images = JSON.parse(document.querySelector("#images").textContent);
for (const image of document.querySelectorAll("img[data-image]")) image.src = images[image.dataset.image];
const form = document.querySelector("form"), count = document.querySelector("#count");
function filter() {
  const kind = form.kind.value, right = form.right.value, text = form.text.value.toLowerCase();
  let shown = 0;
  for (const article of document.querySelectorAll("article")) {
    const fits = (!kind || article.dataset.kind === kind) && (!right || article.classList.contains(right))
      && (!text || article.textContent.toLowerCase().includes(text));
    article.hidden = !fits;
    shown += fits;
  }
  count.textContent = shown + " shown";
}
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
filter();
"""


def page(title: str, body: Iterable[str], script: str = "", style: str = "") -> str:
    """A whole HTML page.

    Args:
        title: Text.
        body: Pieces of HTML.
        script: JavaScript behind them.
        style: Further CSS.
    """
    tail = f"<script>{script}</script>" if script else ""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}{style}</style></head>\n'
        f"<body>\n<h1>{escape(title)}</h1>\n" + "\n".join(body) + f"\n{tail}</body></html>\n"
    )


def table(columns: Sequence[Any], rows: Iterable[Sequence[Any]], num_left: int = 1) -> str:
    """A table; cells are text.

    Args:
        columns: Headings.
        rows: Cells.
        num_left: The first columns, this many, are aligned on the left.
    """

    def row(cells: Sequence[Any], tag: str) -> str:
        marks = ["" if place < num_left else ' class="number"' for place in range(len(cells))]
        return "".join(f"<{tag}{mark}>{escape(str(cell))}</{tag}>" for mark, cell in zip(marks, cells, strict=True))

    lines = [f"<tr>{row(cells, 'td')}</tr>" for cells in rows]
    return f"<table><thead><tr>{row(columns, 'th')}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def embed_image(content: bytes, description: str, kind: str = "jpeg") -> str:
    """An image inside the page."""
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:image/{kind};base64,{data}">'


def write_report(
    path: Path, content: Mapping[str, Any], test: Test, rows: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path
) -> None:
    """Write the report of an evaluation.

    Args:
        path: The file.
        content: Of ``results.json``.
        test: What was asked.
        rows: By condition.
        folder: Holds ``images/``.
    """
    from .plots import draw_conditions

    places = {key: place for place, key in enumerate(dict.fromkeys(q.image.key for q in test.questions))}
    body = [_facts(content), "<h2>Results</h2>", _results_table(content["results"])]
    if content["against_model"]:
        body += ["<h2>Against the model</h2>", _against_table(content["against_model"])]
        if (plot := draw_conditions(content["results"])) is not None:
            body.append(embed_image(plot, "scores by condition and kind", "png"))
    for name, described in content["confidence"].items():
        said = format_confidence(described).split("\n")[0].removeprefix("confidence: ")
        body += [f"<h2>Confidence: {escape(name)}</h2><p>{escape(said)}</p>", table(*tabulate(described))]
    shown = sorted(range(len(test.questions)), key=lambda place: (rows[MODEL][place]["right"], place))[:_MAX_ROWS]
    kinds = list(dict.fromkeys(question.kind for question in test.questions))
    options = "".join(f'<option value="{escape(kind)}">{escape(kind)}</option>' for kind in kinds)
    body += [
        "<h2>Answers</h2>",
        f'<form><label>kind <select name="kind"><option value="">all</option>{options}</select></label>'
        '<label>answers <select name="right"><option value="">all</option><option value="wrong">wrong</option>'
        '<option value="right">right</option></select></label><label>text <input name="text"></label>'
        '<span id="count" class="dim"></span></form>',
    ]
    images: dict[int, str] = {}
    if len(test.questions) > len(shown):
        body.append(f"<p>{len(shown)} of {len(test.questions)} answers, wrong ones first; samples.jsonl has all.</p>")
    for place in sorted(shown):
        question = test.questions[place]
        number = places[question.image.key]
        file = folder / IMAGES_FOLDER / f"{number}.jpg"
        if file.is_file():
            images[number] = "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
        others = {name: part[place] for name, part in rows.items() if name != MODEL}
        body.append(_article(rows[MODEL][place], others, number if number in images else None))
    body.append(f'<script type="application/json" id="images">{json.dumps(images)}</script>')
    with atomic_file(path) as temporary:
        temporary.write_text(make_valid(page(f"{content['model']}: evaluation", body, _SCRIPT)), encoding="utf-8")


def _facts(content: Mapping[str, Any]) -> str:
    rows = [(name, value) for name, value in content["made_of"].items() if not isinstance(value, Mapping)]
    groups = [(name, value) for name, value in content["made_of"].items() if isinstance(value, Mapping) and value]
    rows += [(f"{name}: {key}", item) for name, value in groups for key, item in value.items()]
    text = table(("what decides the answers", ""), rows, 2)
    left = "".join(f"<li>{escape(problem)}</li>" for problem in content["left_out"])
    told = (
        f"<details><summary>{len(content['left_out'])} rows were left out</summary><ul>{left}</ul></details>"
        if left
        else ""
    )
    return f"<p>{content['asked']} questions.</p>{told}<details><summary>settings</summary>{text}</details>"


def _results_table(results: Mapping[str, Any]) -> str:
    rows = []
    for kind, first in results[MODEL].items():
        parts = [part.get(kind) for part in results.values()]
        rows.append([kind, first["measure"], first["asked"], *map(format_share, parts)])
        for wording in first.get("wordings", ()):
            halves = [part and part.get("wordings", {}).get(wording) for part in parts]
            rows.append([f"\u2013 {wording}", first["measure"], halves[0]["asked"], *map(format_share, halves)])
    return table(["question", "measure", "asked", *results], rows, 2) + "<p>Percent, with 95 % intervals.</p>"


def _against_table(against: Mapping[str, Any]) -> str:
    rows = []
    for name, comparison in against.items():
        for kind, row in comparison.items():
            said = format_difference(row)
            rows.append([name, kind, row["asked"], said, row["only_first"], row["only_second"], f"{row['p']:.2g}"])
    columns = ["condition", "question", "asked", "difference", "model alone right", "it alone right", "McNemar p"]
    return table(columns, rows, 2)


def _article(row: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], image: int | None) -> str:
    """One answer with what it rests on."""
    verdict = "right" if row["right"] else "wrong"
    drawing = "" if image is None else f'<img data-image="{image}" alt="the image with what was found in it">'
    earlier = "".join(f'<p class="dim">{escape(asked)} - {escape(said)}</p>' for asked, said in row.get("earlier", ()))
    wording = f", {row['wording']}" if row.get("wording") else ""
    sure = "" if row.get("confidence") is None else f", confidence {row['confidence']:.2f}"
    lines = [
        f'<p class="dim">{escape(str(row["id"]))}: {escape(str(row["kind"]))}{escape(wording)}</p>',
        earlier,
        f"<p><b>{escape(row['question'])}</b></p>",
        f'<p>answered <b class="given">{escape(row["given"]) or "nothing"}</b>, right: '
        f"{escape(' | '.join(dict.fromkeys(row['answers'])))}, score {row['score']:.3g}{sure}</p>",
    ]
    if "error" in row:
        lines.append(f"<p>{escape(row['error'])}</p>")
    if others:
        cells = [(name, other["given"], "right" if other["right"] else "wrong") for name, other in others.items()]
        lines.append(f"<details><summary>other conditions</summary>{table(('', 'answered', ''), cells, 3)}</details>")
    if said := row.get("verbalization"):
        lines.append(f"<details><summary>verbalization</summary><pre>{escape(said)}</pre></details>")
    if routing := row.get("routing"):
        lines.append(f"<details><summary>routing</summary>{_routing_table(routing)}</details>")
    if choices := row.get("choices"):
        lines.append(table(("choice", "log-probability"), [(c, f"{value:.3f}") for c, value in choices.items()]))
    if missing := row.get("missing"):
        lines.append(f'<p class="dim">without {escape(", ".join(missing))}</p>')
    kind = escape(str(row["kind"]))
    return f'<article class="{verdict}" data-kind="{kind}">{drawing}<div>{"".join(lines)}</div></article>'


def _routing_table(layers: Sequence[Mapping[str, Any]]) -> str:
    """Mean weight of each expert per layer and stream."""
    rows = [
        (layer["layer"], stream, ", ".join(f"{name} {share:.2f}" for name, share in layer[stream].items()))
        for layer in layers
        for stream in ("image", "language")
        if layer.get(stream)
    ]
    return table(("layer", "stream", "experts' mean weights"), rows, 3)
