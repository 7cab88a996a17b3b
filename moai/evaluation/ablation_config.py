"""What is compared in the ablations, read from YAML; a misspelt field is an error that names the known ones."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from moai.scenes.scenes import QUESTION_KINDS
from moai.training.nano_config import MultimodalSettings, NanoConfig, build_nano_config
from verbalizers.core.scene import SCENE_FIELDS

__all__ = ["GATES", "STAGES", "START", "AblationConfig", "AblationTest", "Variant", "load_ablation_config"]

STAGES = ("both", "first", "second")
GATES = ("trained", "uniform", "random", "random_expert")
START = "start"
#: The start is a checkpoint for `from_pretrained`, not a folder of stages.
FINISHED = "finished"
START_STAGES = ("phrases", "questions", "multimodal", FINISHED)


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: Short, for files and ``--only``.
        label: For readers.
        table: Which table it stands in; rows of one table are compared with the reference.
        verbalizers: Kinds that speak, in training (unless ``weights_of``) and in the test.
        stages: ``both``, ``first`` (single random experts to the end; tested with the uniform mixture unless ``gates``
            says ``random_expert``) or ``second`` (all experts mixed from the first step on).
        gates: Who weighs the experts in the second stage and in the test: ``trained`` gates, ``uniform`` weights,
            ``random`` weights (drawn anew for every batch, layer and stream from a flat Dirichlet distribution), or
            ``random_expert`` (one expert per layer and stream, drawn anew).
        top_k: Experts kept per token where gates are trained.
        num_latents: Latents of the compressor; None = the recipe's.
        weights_of: Another variant whose trained weights are tested under these settings, or ``start`` for the model
            as the start left it, mixers and gates included; nothing is trained.
        worse_at: Kinds of questions at which the paper says this variant falls behind the reference; empty where it
            makes no claim.
    """

    name: str
    label: str
    table: str
    verbalizers: tuple[str, ...] = tuple(SCENE_FIELDS)
    stages: str = "both"
    gates: str = "trained"
    top_k: int = 3
    num_latents: int | None = None
    weights_of: str | None = None
    worse_at: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("stages", STAGES), ("gates", GATES)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` of {self.name!r} must be among {known}, got {getattr(self, name)!r}.")
        for name, known in (("verbalizers", tuple(SCENE_FIELDS)), ("worse_at", QUESTION_KINDS)):
            if unknown := sorted(set(getattr(self, name)) - set(known)):
                raise ValueError(f"`{name}` of {self.name!r} must be among {known}, got {unknown}. Remove those.")
        if not 1 <= self.top_k <= 3:
            raise ValueError(f"`top_k` of {self.name!r} must be 1, 2 or 3, got {self.top_k}.")
        if self.num_latents is not None and self.num_latents < 1:
            raise ValueError(f"`num_latents` of {self.name!r} must be at least 1, got {self.num_latents}.")
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"`name` of a variant must be letters, digits, - and _, got {self.name!r}.")


@dataclass(frozen=True)
class AblationTest:
    """The questions that every variant is asked, from the test split.

    Attributes:
        per_kind: Questions of each kind.
        noise: Strength of the verbalizers' errors; 0 = the truth.
        seed: Seed of the scenes and of the noise.
        num_objects: Fewest and most objects per scene.
        kinds: Kinds asked.
        batch_size: Questions answered at once.
        max_new_tokens: Bound on an answer.
    """

    per_kind: int = 100
    noise: float = 1.0
    seed: int = 0
    num_objects: tuple[int, int] = (1, 6)
    kinds: tuple[str, ...] = tuple(kind for kind in QUESTION_KINDS if kind != "description")
    batch_size: int = 60
    max_new_tokens: int = 20

    def __post_init__(self) -> None:
        if self.per_kind < 1 or self.batch_size < 1 or self.max_new_tokens < 1:
            raise ValueError("`per_kind`, `batch_size` and `max_new_tokens` of the test must be at least 1.")
        if unknown := sorted(set(self.kinds) - set(QUESTION_KINDS[:6])):
            raise ValueError(f"`kinds` of the test must be among {QUESTION_KINDS[:6]}, got {unknown}. Remove those.")


@dataclass(frozen=True)
class AblationConfig:
    """A whole set of ablations.

    Attributes:
        recipe: Recipe of the model, ``configs/nano.yaml`` read, with ``training`` laid over its part ``questions``.
        variants: All rows; the first is the reference.
        test: What is asked.
        seeds: Each variant is trained once per seed, which decides new weights, scenes and draws.
        phrase_steps: Steps in which a compressor with another number of latents learns phrases again.
        start_recipe: The recipe without the ablations' changes, from which a start can be trained.
        start_stage: Stage of :mod:`moai.training.nano` that left the decoder and the compressor that all start from:
            ``phrases``, or ``questions`` or ``multimodal``, after which they already know questions and few steps are
            enough; ``finished``: the start is a checkpoint for ``from_pretrained``, such as ``checkpoints/moai-nano``.
    """

    recipe: NanoConfig
    start_recipe: NanoConfig
    variants: tuple[Variant, ...]
    test: AblationTest = field(default_factory=AblationTest)
    seeds: tuple[int, ...] = (0,)
    phrase_steps: int = 60
    start_stage: str = "phrases"

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`variants` must be at least one, with names of their own, got {names}.")
        if self.variants[0].weights_of not in (None, START):
            raise ValueError("The first variant is the reference: it must be trained or have `weights_of: start`.")
        if self.start_stage not in START_STAGES:
            raise ValueError(f"`start_stage` must be among {START_STAGES}, got {self.start_stage!r}.")
        if START in names:
            raise ValueError(f"A variant cannot be called {START!r}: the name stands for the start's own weights.")
        trained = {START} | {variant.name for variant in self.variants if variant.weights_of is None}
        for variant in self.variants:
            if variant.weights_of is not None and variant.weights_of not in trained:
                raise ValueError(
                    f"`weights_of` of {variant.name!r} must name a variant that is trained, one of {sorted(trained)}, "
                    f"got {variant.weights_of!r}."
                )
        if self.recipe.questions is None or self.recipe.multimodal is None or self.recipe.phrases is None:
            raise ValueError("The recipe must have the parts `phrases`, `questions` and `multimodal`.")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError(f"`seeds` must be at least one number from 0 on, got {self.seeds}.")

    @property
    def reference(self) -> Variant:
        """The variant that the others are compared with."""
        return self.variants[0]

    def find(self, name: str) -> Variant:
        """A variant by its name.

        Raises:
            ValueError: There is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ValueError(f"expected a variant among {[v.name for v in self.variants]}, got {name!r}.")

    def settings(self, variant: Variant, seed: int) -> MultimodalSettings:
        """How a variant is trained with a seed."""
        base = self.recipe.questions
        steps = {"both": base.first_stage_steps, "first": base.loop.num_steps, "second": 0}[variant.stages]
        shards = replace(base.shards, verbalizers=variant.verbalizers, seed=base.shards.seed + 1000 * seed)
        return replace(base, first_stage_steps=steps, shards=shards)

    def fingerprint(self, variant: Variant, seed: int, start: str) -> str:
        """Hash of everything that decides a result, labels and tables left out.

        Args:
            variant: Of which variant.
            seed: With which seed.
            start: Hash of the starting weights.
        """
        trained = variant if variant.weights_of in (None, START) else self.find(variant.weights_of)
        decides = [
            {name: value for name, value in asdict(one).items() if name not in ("name", "label", "table", "worse_at")}
            for one in (variant, trained)
        ]
        model = [self.recipe.decoder, self.recipe.multimodal.vision, self.recipe.multimodal.compressor]
        parts = [decides, *model, self.recipe.multimodal.mixer, asdict(self.test), seed, start, self.start_stage]
        shards = self.recipe.questions.shards
        parts.append([shards.image_size, shards.with_pictures])
        if variant.weights_of != START:
            parts += [asdict(self.settings(trained, seed)), self.recipe.seed]
        if trained.num_latents is not None:
            parts += [asdict(self.recipe.phrases), self.phrase_steps]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _overlay(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` over ``values``, one level of nesting deep."""
    merged = dict(values)
    for name, change in changes.items():
        is_nested = isinstance(change, dict) and isinstance(merged.get(name), dict) and name in ("loop", "shards")
        merged[name] = {**merged[name], **change} if is_nested else change
    return merged


def _build(kind: type[Any], values: Any, where: str) -> Any:
    known = [item.name for item in fields(kind)]
    if not isinstance(values, dict) or (unknown := sorted(set(values) - set(known))):
        got = unknown if isinstance(values, dict) else values
        raise ValueError(f"`{where}` must have fields among {known}, got {got}. Correct the spelling.")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"`{where}` is incomplete: {error}. Add the field.") from error


def load_ablation_config(path: str | Path) -> AblationConfig:
    """Read ``configs/ablation.yaml`` or one like it.

    Args:
        path: The file; ``recipe`` in it is relative to its folder.

    Raises:
        ValueError: A field is unknown, missing or wrong.
    """
    path = Path(path)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = ("recipe", "training", "test", "seeds", "phrase_steps", "start_stage", "variants")
    if not isinstance(values, dict) or (unknown := sorted(set(values) - set(known))):
        got = unknown if isinstance(values, dict) else values
        raise ValueError(f"`{path.name}` must have fields among {known}, got {got}. Correct the spelling.")
    if missing := [name for name in ("recipe", "variants") if name not in values]:
        raise ValueError(f"`{path.name}` is incomplete, {missing} missing. Add the fields.")
    recipe = yaml.safe_load((path.parent / values["recipe"]).read_text(encoding="utf-8"))
    start_recipe = build_nano_config(recipe, values["recipe"])
    recipe = dict(recipe)
    recipe["questions"] = _overlay(recipe.get("questions") or {}, values.get("training") or {})
    rest = {name: tuple(values[name]) for name in ("seeds",) if name in values}
    rest |= {name: values[name] for name in ("phrase_steps", "start_stage") if name in values}
    return AblationConfig(
        build_nano_config(recipe, f"{values['recipe']} with {path.name}"),
        start_recipe,
        tuple(_build(Variant, one, f"variants[{place}]") for place, one in enumerate(values["variants"])),
        _build(AblationTest, values.get("test") or {}, "test"),
        **rest,
    )
