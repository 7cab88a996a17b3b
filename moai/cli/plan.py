"""``moai plan``: memory and time of an answer, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import EXIT_USAGE, fail, reporting_errors
from .options import DEFAULT_MODEL, DebugOption, JsonOption, VerbalizersOption

if TYPE_CHECKING:
    from ..planning.inference import AnswerPlan, AnswerShape, ModelShape

__all__ = ["plan"]


def plan(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Folder, bundled name or hub name; default: moai-nano.")
    ] = None,
    vision: Annotated[str | None, typer.Option("--vision", help="Instead: a vision tower for a new MoAI ...")] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="... and its decoder, of which the configurations are read.")
    ] = None,
    verbalizers: VerbalizersOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions at a time.")] = 1,
    image_tokens: Annotated[int | None, typer.Option("--image-tokens", min=1, help="Tokens of an image.")] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens of the question.")] = 80,
    auxiliary_tokens: Annotated[int, typer.Option("--auxiliary-tokens", min=0, help="Of the verbalization.")] = 275,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of the answer.")] = 128,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Tell what a model takes, by counting: weights, cache, activations, verbalizers, in 16, 8 and 4 bits."""
    if (vision is None) != (text is None) or (vision is not None and model is not None):
        fail("expected MODEL, or --vision together with --text.", False, EXIT_USAGE)
    with reporting_errors(debug):
        from .answer_settings import parse_verbalizers, silence_libraries

        if not debug:
            silence_libraries()
        from ..checkpoints.io.adapter_files import find_adapter_base
        from ..checkpoints.io.lookup import find_checkpoint
        from ..checkpoints.io.verbalizer_settings import VerbalizerSettings, build_named_verbalizers
        from ..planning.inference import BITS, AnswerShape, ModelShape, measure_verbalizers, plan_answer

        names = parse_verbalizers(verbalizers)
        if vision is not None:
            name, counted, settings = f"{vision} + {text}", ModelShape.of_backbones(vision, text), VerbalizerSettings()
        else:
            name = model or DEFAULT_MODEL
            folder = find_checkpoint(name)
            base = find_adapter_base(folder)
            counted = ModelShape.of_checkpoint(folder if base is None else base.name)
            settings = VerbalizerSettings.load_pretrained(folder)
        built = settings.build()[0] if names is None else build_named_verbalizers(names, settings)
        beside = measure_verbalizers(built)
        shape = AnswerShape(prompt_tokens, auxiliary_tokens, max_new_tokens, batch_size, image_tokens)
        known = sum(size for size in beside.values() if size is not None)
        plans = [plan_answer(counted, shape, bits, known) for bits in BITS]
        if counted.size_of_all is not None:
            plans.append(plan_answer(counted, shape, 4, known, is_all=True))
        if json_output:
            from .rendering import print_json

            print_json(_to_dict(name, counted, plans, beside))
            return
        print(_describe(name, counted, shape, plans, beside))


def _to_dict(name: str, model: ModelShape, plans: list[AnswerPlan], beside: Any) -> dict[str, Any]:
    from ..planning.inference import DEVICES

    return {
        "model": name,
        "num_parameters": model.size.num_parameters,
        "parts": dict(model.size.parts),
        "verbalizers": dict(beside),
        "plans": [
            plan.to_dict() | {"seconds": {device.name: plan.seconds_on(device) for device in DEVICES}} for plan in plans
        ],
    }


def _describe(name: str, model: ModelShape, shape: AnswerShape, plans: list[AnswerPlan], beside: Any) -> str:
    from ..planning.inference import BANDWIDTH_SHARE, DEVICES, EFFICIENCY

    size, image = model.size, shape.num_image_tokens or model.count_image_tokens()
    parts = ", ".join(f"{part} {number / 1e6:,.1f} M" for part, number in size.parts.items())
    lines = [
        f"{name}: {size.num_parameters / 1e6:,.1f} M parameters ({parts}), of which {size.num_quantized / 1e6:,.1f} M "
        "in 8 or 4 bits",
        f"an answer: {image} tokens of an image, {shape.num_prompt_tokens} of a question, {shape.num_auxiliary_tokens} "
        f"of a verbalization, {shape.num_answer_tokens} of an answer; {shape.batch_size} at a time",
        "verbalizers: " + (", ".join(f"{kind} {_gb(bytes_)}" for kind, bytes_ in beside.items()) or "none"),
        "",
        "| | Weights | Cache | Activations | Verbalizers | Together |",
        "| --- " + "| ---: " * 5 + "|",
    ]
    for plan in plans:
        sizes = (plan.weights, plan.cache, plan.activations, plan.verbalizers, plan.peak)
        lines.append(f"| {_name(plan)} | " + " | ".join(map(_gb, sizes)) + " |")
    lines += [
        "",
        f"| Device | Memory | {' | '.join(map(_name, plans))} |",
        "| --- " + "| ---: " * (1 + len(plans)) + "|",
    ]
    for device in DEVICES:
        cells = []
        for plan in plans:
            first, further = plan.seconds_on(device)
            answer = f"{first:.2f} s + {1000 * further:.1f} ms a token"
            cells.append(answer if plan.peak < device.memory_gb * 1e9 else f"needs {_gb(plan.peak)}")
        lines.append(f"| {device.name} | {device.memory_gb:g} GB | " + " | ".join(cells) + " |")
    lines.append(
        f"\nCounted, not measured: {EFFICIENCY:.0%} of a device's operations and {BANDWIDTH_SHARE:.0%} of its "
        "bandwidth are assumed, the verbalizers' time is not in it."
    )
    return "\n".join(lines)


def _name(plan: AnswerPlan) -> str:
    return f"{plan.bits} bits" + (" with --quantize-all" if plan.is_all else "")


def _gb(size: float | None) -> str:
    if size is None:
        return "not known"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
