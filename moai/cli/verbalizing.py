"""``moai verbalize``: verbalizations of images, without the language model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from verbalizers import SCENE_FIELDS, Verbalizer, verbalize_scene
from verbalizers.core.profiling import Cost, profile_scene
from verbalizers.core.scene import keep_kinds
from verbalizers.core.verbalizer import add_sources

from ..checkpoints.io.lookup import find_checkpoint, list_bundled_checkpoints
from ..checkpoints.io.verbalizer_settings import VerbalizerSettings, build_named_verbalizers
from ..pipeline.looking import complete_scenes, find_missing_kinds
from ..processing.image_loading import load_image
from .answer_settings import parse_verbalizers
from .options import DEFAULT_MODEL
from .overlays import Overlays
from .profiling import print_costs
from .rendering import (
    describe_missing,
    note,
    print_json,
    print_words,
    progress_bar,
)

__all__ = ["choose_verbalizers", "verbalize_images"]


def choose_verbalizers(
    model: str | None, verbalizers: str | None, kinds: Sequence[str] | None
) -> tuple[VerbalizerSettings, list[Verbalizer], dict[str, str]]:
    """The verbalizers that a command's options name; no model is loaded yet.

    Args:
        model: Checkpoint whose ``verbalizers.json`` to use; None = the bundled one's.
        verbalizers: Names separated by commas: only these of them, or others.
        kinds: Only these kinds look, and whoever finds what they use; None = all.

    Returns:
        The checkpoint's settings, who looks, and for each kind that cannot be built why.

    Raises:
        ValueError: An unknown kind or verbalizer.
    """
    if model is None and DEFAULT_MODEL in list_bundled_checkpoints():
        model = DEFAULT_MODEL  # as `moai ask` looks
    stored = VerbalizerSettings() if model is None else VerbalizerSettings.load_pretrained(find_checkpoint(model))
    if verbalizers is None:
        built, absent = stored.build()
    else:
        built, absent = build_named_verbalizers(parse_verbalizers(verbalizers) or [], stored), {}
    unknown = set(kinds or stored.kinds) - set(SCENE_FIELDS) - {v.kind for v in built}
    if unknown:
        raise ValueError(f"unknown kinds {sorted(unknown)}, expected some of {sorted(SCENE_FIELDS)}.")
    chosen = [verbalizer for verbalizer in built if kinds is None or verbalizer.kind in kinds]
    return stored, add_sources(chosen, built), absent


def verbalize_images(
    images: Sequence[str],
    model: str | None,
    verbalizers: str | None,
    kinds: Sequence[str] | None,
    timeout_s: float | None,
    overlays: Overlays | None = None,
    is_json: bool = False,
    is_profiling: bool = False,
) -> int:
    """Print what the verbalizers find in each image. The language model is not loaded.

    Args:
        images: Paths.
        model: Checkpoint whose ``verbalizers.json`` to use; None = the bundled one's.
        verbalizers: Names separated by commas: only these of them, or others.
        kinds: Only these kinds speak, and only they and whoever finds what they use look; None = all.
        timeout_s: Seconds per image for a verbalizer; None = no limit.
        overlays: Where each image's drawing goes; None = nothing is drawn.
        is_json: One JSON object per image on standard output.
        is_profiling: Measure each verbalizer alone, then all side by side; print a table, or with ``is_json`` add
            ``profile`` to each row.

    Returns:
        How many images could not be read; each was reported.

    Raises:
        ValueError: An unknown kind or verbalizer.
    """
    if overlays is not None:
        overlays.check()
    stored, looking, absent = choose_verbalizers(model, verbalizers, kinds)
    wanted = list(kinds or stored.kinds)
    num_failed = 0
    costs: list[list[Cost]] = []
    with progress_bar("verbalizing", len(images)) if len(images) > 1 else nullcontext() as show:
        for index, path in enumerate(images):
            if show is not None:
                show(index)
            try:
                image = load_image(path)
                if is_profiling:
                    scene, cost = profile_scene(image, looking, timeout_s, is_first=not costs)
                    costs.append(cost)
                else:
                    scene = complete_scenes([(image, None)], looking, timeout_s)[0]
            except ValueError as error:
                num_failed += 1
                print_json({"image": path, "error": str(error)}) if is_json else note(f"error: {error}")
                continue
            scene = keep_kinds(scene, kinds)
            words = verbalize_scene(scene, compat=stored.compat, settings=stored.words)
            missing = find_missing_kinds(scene, wanted, absent)
            overlay, obstacle = (None, None) if overlays is None else overlays.draw(scene, index, image)
            if is_json:
                row = {"image": path, "words": words, "scene": scene.to_dict(), "missing": missing}
                row |= {} if overlay is None else {"overlay": str(overlay)}
                print_json(row | ({"profile": [c.to_dict() for c in costs[-1]]} if is_profiling else {}))
            else:
                lines = describe_missing(missing).replace("answered without", "nobody looked for")
                footer = "\n".join(filter(None, [lines, f"overlay: {overlay}" if overlay else ""]))
                print_words(path, words, footer)
            if obstacle is not None:
                raise obstacle
    if costs and not is_json:
        print_costs(costs)
    return num_failed
