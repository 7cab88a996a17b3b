"""``moai plan``: memory and time of an answer or of a training, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import EXIT_USAGE, fail, reporting_errors
from .options import DEFAULT_MODEL, DebugOption, JsonOption, VerbalizersOption

if TYPE_CHECKING:
    from ..planning.inference import AnswerCount, AnswerPlan
    from ..planning.planned_model import PlannedModel, SampleShape
    from ..planning.training import Cluster, StepCount, StepPlan

__all__ = ["plan"]


def plan(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Folder, bundled name, hub name or MoAI-7B; default: moai-nano."),
    ] = None,
    vision: Annotated[str | None, typer.Option("--vision", help="Instead: a vision tower for a new MoAI ...")] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="... and its decoder, of which no weights are read.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Plan a training by this recipe; its model unless one is named."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Laid over the recipe; may be repeated.")
    ] = None,
    verbalizers: VerbalizersOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions at a time.")] = 1,
    image_size: Annotated[str, typer.Option("--image-size", metavar="WxH", help="Of images, in pixels.")] = "640x480",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens of the question.")] = 80,
    auxiliary_tokens: Annotated[int, typer.Option("--auxiliary-tokens", min=0, help="Of the verbalization.")] = 275,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of the answer.")] = 128,
    gpus: Annotated[str, typer.Option("--gpus", metavar="N,N", help="Training: numbers of GPUs.")] = "1,8,64",
    samples: Annotated[int, typer.Option("--samples", min=1, help="Training: samples of the whole run.")] = 665_000,
    memory_gb: Annotated[float, typer.Option("--memory-gb", help="Training: of a GPU.")] = 80.0,
    peak_tflops: Annotated[float, typer.Option("--peak-tflops", help="Training: of a GPU, bfloat16, dense.")] = 989.0,
    efficiency: Annotated[
        float, typer.Option("--efficiency", help="Training: the share of it that is reached.")
    ] = 0.35,
    bandwidth_gb: Annotated[float, typer.Option("--bandwidth-gb", help="Training: between GPUs, per second.")] = 50.0,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Tell what a model takes, by counting it without weights: an answer in 16, 8 and 4 bits, or a training."""
    if (vision is None) != (text is None) or (vision is not None and model is not None):
        fail("expected MODEL, or --vision together with --text.", False, EXIT_USAGE)
    if overrides and config is None:
        fail("expected --config beside --set: it changes a recipe.", False, EXIT_USAGE)
    numbers = _parse_numbers("--gpus", gpus, ",")
    sides = _parse_numbers("--image-size", image_size, "x", 2)
    with reporting_errors(debug):
        from .answer_settings import parse_verbalizers, silence_libraries

        if not debug:
            silence_libraries()
        from ..planning.planned_model import PlannedModel, SampleShape

        shape = SampleShape(prompt_tokens, auxiliary_tokens, max_new_tokens, (sides[1], sides[0]))
        if config is not None:
            from ..planning.training import Cluster

            machine = (memory_gb, peak_tflops, efficiency, bandwidth_gb)
            clusters = [Cluster(number, *machine) for number in numbers]
            report = _plan_training(config, overrides or [], model, vision, text, shape, clusters, samples)
        else:
            found = (
                PlannedModel.load(model or DEFAULT_MODEL) if vision is None else PlannedModel.of_backbones(vision, text)
            )
            report = _plan_answer(found, parse_verbalizers(verbalizers), shape, batch_size)
        if json_output:
            from .rendering import print_json

            print_json(report[0])
            return
        print(report[1])


def _parse_numbers(option: str, given: str, separator: str, count: int | None = None) -> list[int]:
    parts = given.lower().split(separator)
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or count not in (None, len(parts)):
        wanted = "1,8,64" if count is None else "640x480"
        fail(f"expected {option} as {wanted}, got {given!r}.", False, EXIT_USAGE)
    return [int(part) for part in parts]


# ---------------------------------------------------------------------- an answer


def _plan_answer(model: PlannedModel, names: Any, shape: SampleShape, batch_size: int) -> tuple[dict[str, Any], str]:
    """The report as values and as text."""
    from ..checkpoints.io.verbalizer_settings import build_named_verbalizers
    from ..planning.inference import DEVICES, count_answer, measure_verbalizers, plan_answer

    settings = model.verbalizers
    built = settings.build()[0] if names is None else build_named_verbalizers(names, settings)
    beside = measure_verbalizers(built)
    known = sum(size for size in beside.values() if size is not None)
    count = count_answer(model, shape, batch_size)
    plans = [plan_answer(model, count, bits, known) for bits in model.answering.list_bits()]
    if model.size_of_all is not None:
        plans.append(plan_answer(model, count, 4, known, is_all=True))
    values = {
        "model": model.name,
        "num_parameters": model.size.num_parameters,
        "parts": dict(model.size.parts),
        "verbalizers": dict(beside),
        "prompt_length": count.prompt_length,
        "plans": [
            plan.to_dict() | {"seconds": {device.name: plan.seconds_on(device) for device in DEVICES}} for plan in plans
        ],
    }
    return values, _describe_answer(model, shape, count, plans, beside)


def _describe_answer(
    model: PlannedModel, shape: SampleShape, count: AnswerCount, plans: list[AnswerPlan], beside: Any
) -> str:
    from ..planning.inference import BANDWIDTH_SHARE, DEVICES, EFFICIENCY

    size = model.size
    parts = ", ".join(f"{part} {number / 1e6:,.1f} M" for part, number in size.parts.items())
    lines = [
        f"{model.name}: {size.num_parameters / 1e6:,.1f} M parameters ({parts}), of which "
        f"{size.num_quantized / 1e6:,.1f} M in 8 or 4 bits",
        f"an answer: {shape.num_prompt_tokens} tokens of a question, {shape.num_auxiliary_tokens} of a verbalization, "
        f"{count.prompt_length} of the prompt in all; {shape.num_answer_tokens} of an answer; {count.batch_size} at a "
        "time",
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


# ---------------------------------------------------------------------- a training


def _plan_training(
    recipe: Path,
    overrides: list[str],
    name: str | None,
    vision: str | None,
    text: str | None,
    shape: SampleShape,
    clusters: list[Cluster],
    num_samples: int,
) -> tuple[dict[str, Any], str]:
    """The report as values and as text."""
    from ..planning.planned_model import PlannedModel
    from ..planning.training import count_step, plan_step
    from ..training.start import find_start
    from ..training.train_settings import load_settings

    settings = load_settings(recipe, overrides)
    backbones = (
        (vision, text) if vision else (getattr(settings.model, "vision", None), getattr(settings.model, "text", None))
    )
    if name is None and None not in backbones:
        model = PlannedModel.of_backbones(*backbones)
    else:
        model = PlannedModel.load(name or find_start(settings.model.path))
    count = count_step(model, settings, shape)
    batch_size, rows = settings.optimization.batch_size, []
    is_quantized = settings.model.quantization != "none"
    modes = {"as the recipe says": {"is_quantized": is_quantized}}
    if model.answering.can_quantize and not is_quantized and settings.train.has_adapter:
        modes["with nf4"] = {"is_quantized": True}
    modes["with FSDP2"] = {"is_quantized": is_quantized, "is_sharded": True}
    for mode, options in modes.items():
        for cluster in clusters:
            if cluster.num_gpus > 1 or not options.get("is_sharded"):
                row = plan_step(count, cluster, num_samples=num_samples, batch_size=batch_size, **options)
                rows.append((mode, cluster, row))
    values = {
        "model": model.name,
        "num_parameters": count.num_parameters,
        "num_trained": count.num_trained,
        "parts": {part: {"parameters": all_, "trained": trained} for part, (all_, trained) in count.parts.items()},
        "flops": count.flops,
        "sample_bytes": count.sample_bytes,
        "plans": [{"mode": mode, "num_gpus": cluster.num_gpus} | row.to_dict() for mode, cluster, row in rows],
    }
    return values, _describe_training(model, count, shape, rows, num_samples, batch_size)


def _describe_training(
    model: PlannedModel,
    count: StepCount,
    shape: SampleShape,
    rows: list[tuple[str, Cluster, StepPlan]],
    num_samples: int,
    batch_size: int,
) -> str:
    trained = ", ".join(f"{part} {number / 1e6:,.1f} M" for part, (_, number) in count.parts.items() if number)
    machine = rows[0][1]
    lines = [
        f"{model.name}: {count.num_parameters / 1e6:,.1f} M parameters, {count.num_trained / 1e6:,.1f} M trained "
        f"({trained})",
        f"a sample: {shape.num_prompt_tokens} tokens of a question, {shape.num_auxiliary_tokens} of a verbalization, "
        f"{shape.num_answer_tokens} of an answer; {count.flops / 1e12:.3g} TFLOP forward and backward, "
        f"{_gb(count.sample_bytes)} of activations",
        f"{num_samples:,} samples, {batch_size} per step; GPUs of {machine.memory_gb:g} GB, {machine.peak_tflops:g} "
        f"TFLOP/s peak of which {machine.efficiency:.0%} are assumed, {machine.bandwidth_gb:g} GB/s between them",
        "",
        "| Mode | GPUs | Weights | Trained | Activations | Memory per GPU | Micro-batch | Step | Hours |",
        "| --- " + "| ---: " * 8 + "|",
    ]
    for mode, cluster, row in rows:
        cells = [_gb(size) for size in (row.weights, row.trained, row.activations, row.peak)]
        cells += [str(row.micro_batch or "none fits"), f"{row.step_s:.2f} s", f"{row.hours:.1f}"]
        lines.append(f"| {mode} | {cluster.num_gpus} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
