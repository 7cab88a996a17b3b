"""Settings of a sweep: variants of one training recipe and one test, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt

from moai.settings import apply_overrides, load_settings, settings, to_plain
from moai.training.model_building import find_answering
from moai.training.train_settings import ModelSettings
from moai.training.train_settings import load_settings as load_recipe

from .new_models import MODEL_TYPES, SYSTEMS, NewModelsSettings
from .question_settings import SHORT_KINDS, SceneTest

__all__ = ["SweepSettings", "SweepTest", "Variant", "load_sweep_settings"]

#: What every stage says of its model. The other settings of ``model`` make a new one: the first stage's affair.
_OF_ANY_STAGE = frozenset(item.name for item in fields(ModelSettings))


@settings(kw_only=True)
class SweepTest(SceneTest):
    """A test on scenes, and how the model answers meanwhile.

    Attributes:
        options: The model's own options by name, see :meth:`moai.models.answering.Answering.draw_options`.
        batch_size: Questions per batch; what is random is drawn once for each.
    """

    kinds: tuple[Literal[SHORT_KINDS], ...] = SHORT_KINDS
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: Annotated[StrictInt, Field(ge=1)] = 60


@settings
class Variant:
    """One row of a table: overrides of training and of the test.

    Attributes:
        name: Short, for files and ``--only``.
        label: For readers.
        table: Which table it stands in.
        train: ``key=value`` words laid over the recipe of each of its stages.
        stages: Its stages and further words for each, in this order; None = all of the sweep's; {} = nothing is
            trained, and the start itself is tested.
        evaluate: ``key=value`` words laid over the test.
        compared_with: Name of the variant that it is compared with; None = the first of the sweep.
        worse_at: Kinds of questions at which the paper says this variant falls behind; empty where it makes no claim.
        start: What it starts from: a new model of this system, made as ``new_models`` says; None = the checkpoint that
            the command names.
        goes_on_from: Name of the variant whose trained model of the same seed it starts from instead.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    label: str
    table: str
    train: tuple[str, ...] = ()
    stages: dict[str, tuple[str, ...]] | None = None
    evaluate: tuple[str, ...] = ()
    compared_with: str | None = None
    worse_at: tuple[Literal[SHORT_KINDS], ...] = ()
    start: Literal[SYSTEMS] | None = None
    goes_on_from: str | None = None


@settings
class SweepSettings:
    """A whole sweep.

    Attributes:
        recipe: Fields of a recipe of `moai train`; the sweep sets `model.path`, `output_folder` and seeds itself.
        stages: Stages that a variant is trained in, one after the other, and the words of each, laid over ``recipe``.
        variants: The rows; the first is the reference.
        evaluate: The test that all variants take.
        seeds: Each variant is trained once per seed, which decides new weights, scenes and draws.
        new_models: Sizes of the new models that variants start from.
        keeps_models: Trained models stay in the sweep's folder.

    Raises:
        ValueError: Names do not fit, or a variant's words are no settings of training or of the test.
    """

    recipe: dict[str, Any]
    stages: dict[str, tuple[str, ...]]
    variants: tuple[Variant, ...]
    evaluate: SweepTest = field(default_factory=SweepTest)
    seeds: tuple[Annotated[StrictInt, Field(ge=0)], ...] = (0,)
    new_models: NewModelsSettings | None = None
    keeps_models: StrictBool = False

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`variants` must be at least one, with names of their own, got {names}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must be at least one number, each once, got {self.seeds}.")
        for variant in self.variants:
            if unknown := sorted(set(self.stages_of(variant)) - set(self.stages)):
                raise ValueError(f"`stages` of {variant.name!r} must be among {list(self.stages)}, got {unknown}.")
            self.reference_of(variant)
            self._check_start(variant)
            try:
                options = self.test_of(variant).options
                for stage in self.stages_of(variant) or self.stages:
                    recipe = load_recipe(self.recipe_of(variant, stage, 0, "start", Path("out")))
                    find_answering(recipe).check_drawn_options(options)
            except ValueError as error:
                raise ValueError(f"variant {variant.name!r}: {error}") from error

    def _check_start(self, variant: Variant) -> None:
        if variant.start is not None and self.new_models is None:
            raise ValueError(f"variant {variant.name!r} starts from a new {variant.start}: describe `new_models`.")
        if variant.goes_on_from is None:
            return
        other = self.find(variant.goes_on_from)
        if variant.start is not None or other.goes_on_from is not None or not self.stages_of(other):
            raise ValueError(
                f"variant {variant.name!r} must have no `start` and go on from a trained one that goes on from none, "
                f"got {other.name!r}."
            )

    def root_of(self, variant: Variant) -> Variant:
        """The variant whose start a variant goes back to: itself, or the one that it goes on from."""
        return variant if variant.goes_on_from is None else self.find(variant.goes_on_from)

    def find(self, name: str) -> Variant:
        """A variant by its name.

        Raises:
            ValueError: There is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ValueError(f"expected a variant among {[one.name for one in self.variants]}, got {name!r}.")

    def reference_of(self, variant: Variant) -> Variant:
        """What a variant is compared with; itself where it is a reference."""
        return self.find(variant.compared_with or self.variants[0].name)

    def stages_of(self, variant: Variant) -> Mapping[str, tuple[str, ...]]:
        """The stages that a variant is trained in, with its own words for each."""
        return dict.fromkeys(self.stages, ()) if variant.stages is None else variant.stages

    def recipe_of(self, variant: Variant, stage: str, seed: int, start: str, folder: Path) -> dict[str, Any]:
        """What `moai train` gets for a stage of a variant.

        Args:
            variant: Which variant.
            stage: Which of its stages; of a variant without stages any of the sweep's.
            seed: Seed of the run; it shifts the seeds of scenes too.
            start: What the stage starts from.
            folder: Output folder of the stage.
        """
        stages = self.stages_of(variant)
        words = (*self.stages[stage], *variant.train, *stages.get(stage, ()))
        recipe = apply_overrides(self.recipe, [*words, f"seed={seed}", f"output_folder={folder}"])
        model = {**(recipe.get("model") or {}), "path": start}
        if (system := self.root_of(variant).start) is not None:
            model["type"] = MODEL_TYPES[system]
        if stage != next(iter(stages), stage):
            model = {name: value for name, value in model.items() if name in _OF_ANY_STAGE}
        data = dict(recipe.get("data") or {})
        sources = data.get("sources") or ()
        sources = sources if isinstance(sources, list | tuple) else [sources]
        data["sources"] = [_with_seed(source, seed) for source in sources]
        return {**recipe, "model": model, "data": data}

    def test_of(self, variant: Variant) -> SweepTest:
        """The test that a variant takes."""
        test = load_settings(SweepTest, self.evaluate, variant.evaluate, "evaluate")
        same = ("per_kind", "kinds", "split", "seed", "image_size", "num_objects")
        if changed := [name for name in same if getattr(test, name) != getattr(self.evaluate, name)]:
            raise ValueError(f"all variants must be asked the same questions, but `evaluate` changes {changed}.")
        return test

    def deciding(self, variant: Variant, seed: int) -> list[Any]:
        """All that decides a result beside the start's weights, JSON-able; names and labels left out."""
        stages = self.stages_of(variant)
        recipes = [self.recipe_of(variant, stage, seed, "", Path()) for stage in stages]
        own = [recipes, to_plain(self.test_of(variant))]
        root = self.root_of(variant)
        return own if root is variant else [*own, self.deciding(root, seed)[0]]


def _with_seed(source: Any, seed: int) -> Any:
    """A source of training samples; scenes of each seed are others."""
    scenes = source.get("scenes") if isinstance(source, Mapping) else None
    return source if scenes is None else {**source, "scenes": {**scenes, "seed": scenes.get("seed", 0) + 1000 * seed}}


def load_sweep_settings(path: str | Path) -> SweepSettings:
    """Read ``configs/ablation.yaml`` or one like it.

    Args:
        path: The file.

    Raises:
        ValueError: A field is unknown, missing or wrong.
    """
    return load_settings(SweepSettings, path)
