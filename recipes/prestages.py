"""moai-nano with other towers: what a tower gains from learning before the questions (docs/prestages.md).

    python -m recipes.prestages --config configs/prestages.yaml --out runs/prestages

For each seed: a tower by TCL, one by data2vec; the bundled moai-nano with a new tower in place of its own, with each of
these, all trained by the same steps, and a learned prompt before the one from TCL. Every training goes on from its last
checkpoint and every finished result is kept, so the same command goes on with what is missing. ``table.md`` appears
when all is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import StrictInt

from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.data.image_samples import ImageDataset
from moai.data.image_settings import ImageDataSettings
from moai.evaluation.conditions import MODEL, Condition
from moai.evaluation.evaluate import answer_test
from moai.evaluation.intervals import Interval, bootstrap_mean
from moai.evaluation.loading import load_test
from moai.evaluation.question_settings import SceneTest
from moai.evaluation.retrieval import RANKS, measure_retrieval
from moai.evaluation.tables import format_table
from moai.models.backbones import load_vision_backbone
from moai.models.moai.image_processing_moai import MoAIImageProcessor
from moai.models.moai.new_model import renew
from moai.models.moai.processing_moai import MoAIProcessor
from moai.models.tcl.modeling_tcl import TCLModel
from moai.models.tcl.processing_tcl import TCLProcessor
from moai.pipeline.pipeline import Pipeline
from moai.scenes.scenes import Scenes
from moai.settings import load_settings, settings, to_plain
from moai.training.trainer import run_training
from verbalizers.core.durable_files import atomic_file, atomic_folder, hold_folder, write_json

__all__ = ["PrestageSettings", "ProbeSettings", "main", "measure_probe", "run_prestages"]

#: Where the tower comes from, and what is tested of it.
TOWERS = ("scratch", "tcl", "data2vec")
PROMPTED = "tcl+prompt"
#: Label of a condition -> the test's ``verbalizations``.
CONDITIONS = {"image alone": "none", "with auxiliary tokens": "truth"}


@settings
class ProbeSettings:
    """Which names stand in an image, told from a resting tower by a ridge regression.

    Attributes:
        num_train: Scenes that it is fitted to.
        num_test: Scenes that it is tested on.
        image_size: Of the scenes.
        num_objects: Fewest and most per scene.
        names: The only things there are.
        penalty: Of the regression, times the number of scenes.
        fewest: Names that are in fewer test scenes, or lacking in fewer, are left out.
    """

    num_train: StrictInt = 1000
    num_test: StrictInt = 500
    image_size: StrictInt = 96
    num_objects: tuple[StrictInt, StrictInt] = (1, 4)
    names: tuple[str, ...] = ()
    penalty: float = 0.01
    fewest: StrictInt = 10


@settings
class PrestageSettings:
    """Settings of the comparison.

    Attributes:
        tcl: Recipe of ``task: tcl`` without an output folder.
        data2vec: Recipe of ``task: data2vec`` likewise.
        base: Folder or bundled name of the MoAI whose tower is replaced.
        later: Recipe of a MoAI that trains it with each tower, without path and output folder.
        prompt: Recipe of a learned prompt before the one with TCL's tower, likewise.
        test: Questions.
        retrieval: Captioned images, fields of ``data`` of TCL's recipe.
        probe: The linear probe.
        seeds: Everything is trained once per seed.
    """

    tcl: dict[str, Any]
    data2vec: dict[str, Any]
    base: str
    later: dict[str, Any]
    prompt: dict[str, Any]
    test: SceneTest
    retrieval: dict[str, Any]
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    seeds: tuple[StrictInt, ...] = (0, 1)


def run_prestages(chosen: PrestageSettings, out: Path) -> str:
    """Run what is missing; returns the table, which is written to ``table.md``.

    Args:
        chosen: All settings; a folder holds the results of one set of them.
        out: Folder of everything.

    Raises:
        ValueError: The folder was made with other settings, or something does not fit.
        KeyboardInterrupt: Stopped; the same call goes on from there.
    """
    with hold_folder(out):
        _check_settings(chosen, out)
        for seed in chosen.seeds:
            _run_seed(chosen, seed, out / f"seed-{seed}")
        table = format_results(chosen, out)
        with atomic_file(out / "table.md") as temporary:
            temporary.write_text(table + "\n", encoding="utf-8")
    return table


def _check_settings(chosen: PrestageSettings, out: Path) -> None:
    file, told = out / "settings.json", json.loads(json.dumps(to_plain(chosen)))
    if file.is_file() and (had := json.loads(file.read_text(encoding="utf-8"))) != told:
        changed = sorted(name for name in told if told[name] != had.get(name))
        raise ValueError(
            f"expected the settings that {out} was made with, got others in {', '.join(changed)}. Name another --out."
        )
    write_json(file, told)


def _run_seed(chosen: PrestageSettings, seed: int, out: Path) -> None:
    for name in ("tcl", "data2vec"):
        _train(getattr(chosen, name), {"seed": seed}, out / name)
    for name in TOWERS:
        start = out / f"start-{name}"
        _replace_tower(chosen.base, None if name == "scratch" else out / name / "final", seed, start)
        _keep(out / f"probe-{name}-before.json", lambda start=start: measure_probe(start, chosen.probe))
        folder = out / f"later-{name}"
        _train(chosen.later, {"model": {**chosen.later.get("model", {}), "path": str(start)}, "seed": seed}, folder)
        _keep(out / f"probe-{name}.json", lambda folder=folder: measure_probe(folder / "final", chosen.probe))
    models = {name: out / f"later-{name}" / "final" for name in TOWERS} | {PROMPTED: out / "prompt" / "final"}
    start = {"model": {**chosen.prompt.get("model", {}), "path": str(models["tcl"])}, "seed": seed}
    _train(chosen.prompt, start, out / "prompt")
    for name, model in models.items():
        for label, source in CONDITIONS.items():
            test = replace(chosen.test, verbalizations=source)
            file = out / f"answers-{name}-{source}.json"
            _keep(file, lambda model=model, test=test: _answer(model, test))
            print(f"seed {seed}, {name}, {label}: done", flush=True)
    _keep(out / "retrieval.json", lambda: _retrieve(chosen.retrieval, out / "tcl" / "final"))


def _replace_tower(base: str, tower: Path | None, seed: int, folder: Path) -> None:
    """Write a MoAI with another tower and a new projector, once.

    Args:
        base: The MoAI.
        tower: Folder of a tower of the same sizes; None = a new one.
        seed: Of what is new.
        folder: Is written.
    """
    if folder.is_dir():
        return
    source = find_checkpoint(base)
    model = renew(source, {}, ("vision_tower", "projector"), seed=seed).float()
    if tower is not None:
        own, given = model.model.vision_tower, load_vision_backbone(tower).tensors
        read = {name: value.shape for name, value in own.state_dict().items() if "post_layernorm" not in name}
        if wrong := [name for name, size in read.items() if name not in given or given[name].shape != size]:
            raise ValueError(f"expected a tower of the sizes of {base}'s, got another {wrong[0]} in {tower}.")
        own.load_state_dict(given, strict=False)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        MoAIProcessor.from_pretrained(source).save_pretrained(temporary)
        VerbalizerSettings.load(source).save(temporary)


def _train(recipe: Mapping[str, Any], fields: Mapping[str, Any], folder: Path) -> None:
    if not (folder / "final").is_dir():
        result = run_training({**recipe, **fields, "output_folder": str(folder)})
        if not result.is_finished:
            raise KeyboardInterrupt


def _keep(file: Path, compute: Callable[[], Any]) -> None:
    if not file.is_file():
        content = compute()
        write_json(file, content)


def _answer(folder: Path, test: SceneTest) -> dict[str, list[bool]]:
    """Whether each answer is right, by kind of question."""
    right: dict[str, list[bool]] = {}
    pipeline = Pipeline.from_pretrained(folder, [])
    for batch in answer_test(pipeline, load_test(test), [Condition(MODEL, pipeline)]):
        for row in batch.rows[MODEL]:
            right.setdefault(row["kind"], []).append(bool(row["right"]))
    return right


def _retrieve(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    dataset = ImageDataset(load_settings(ImageDataSettings, data), has_captions=True)
    model = TCLModel.from_pretrained(folder, dtype=torch.float32).eval()
    return measure_retrieval(model, TCLProcessor.from_pretrained(folder), dataset)


# ---------------------------------------------------------------------- the probe


def measure_probe(folder: Path, chosen: ProbeSettings) -> dict[str, float]:
    """How well a linear function of a tower's mean token tells which names stand in an image.

    Args:
        folder: Of a MoAI.
        chosen: Scenes and penalty.

    Returns:
        Area under the ROC curve by name, of names that are in enough test scenes.
    """
    processor, tower = MoAIImageProcessor.from_pretrained(folder), _load_tower(folder)
    features, names = {}, {}
    for split, count in (("train", chosen.num_train), ("test", chosen.num_test)):
        scenes = Scenes(
            split, 11, chosen.image_size, tuple(chosen.num_objects), 1, sign_probability=0.0, names=chosen.names
        )
        samples = [scenes[index] for index in range(count)]
        features[split] = _compute_features(tower, processor, [sample.image for sample in samples])
        names[split] = [{*s.truth.detections.class_names, *s.truth.segments.class_names} for s in samples]
    known = sorted(set().union(*names["train"]))
    targets = {split: np.array([[n in found for n in known] for found in names[split]]) for split in names}
    mean, std = features["train"].mean(0), features["train"].std(0) + 1e-6
    inputs = {split: np.c_[(found - mean) / std, np.ones(len(found))] for split, found in features.items()}
    gram = inputs["train"].T @ inputs["train"] + chosen.penalty * chosen.num_train * np.eye(inputs["train"].shape[1])
    scores = inputs["test"] @ np.linalg.solve(gram, inputs["train"].T @ targets["train"].astype(float))
    return {
        name: _area(scores[:, place], targets["test"][:, place])
        for place, name in enumerate(known)
        if chosen.fewest <= targets["test"][:, place].sum() <= chosen.num_test - chosen.fewest
    }


def _load_tower(folder: Path) -> torch.nn.Module:
    from transformers import CLIPVisionModel

    found = load_vision_backbone(folder)
    tower = CLIPVisionModel(found.config)
    missing = tower.load_state_dict(found.tensors, strict=False).missing_keys
    assert not missing, missing
    return tower.float().eval()


@torch.inference_mode()
def _compute_features(tower: torch.nn.Module, processor: Any, images: Sequence[np.ndarray]) -> np.ndarray:
    rows = []
    for first in range(0, len(images), 32):
        batch = [Image.fromarray(image) for image in images[first : first + 32]]
        pixels = processor(images=batch, return_tensors="pt")["pixel_values"]
        rows.append(tower(pixel_values=pixels).last_hidden_state.mean(dim=1).double().numpy())
    return np.concatenate(rows)


def _area(scores: np.ndarray, is_there: np.ndarray) -> float:
    """Share of pairs of a scene with the name and one without in which the former scores higher; ties count half."""
    with_it, without = scores[is_there][:, None], scores[~is_there][None]
    return float(((with_it > without) + 0.5 * (with_it == without)).mean())


# ---------------------------------------------------------------------- the table


def format_results(chosen: PrestageSettings, out: Path) -> str:
    """Tables in Markdown of all results: means over seeds with bootstrap intervals over questions and seeds."""

    def read(name: str) -> list[Any]:
        return [json.loads((out / f"seed-{s}" / name).read_text(encoding="utf-8")) for s in chosen.seeds]

    parts = []
    for label, source in CONDITIONS.items():
        answers = {name: read(f"answers-{name}-{source}.json") for name in (*TOWERS, PROMPTED)}
        kinds = list(answers[TOWERS[0]][0])
        groups = {name: _by_kind(found, kinds) for name, found in answers.items()}
        rows = [[name, *map(_say, map(bootstrap_mean, [[g] for g in of]))] for name, of in groups.items()]
        for row, of in zip(rows, groups.values(), strict=True):
            row.append(_say(bootstrap_mean(of)))
        parts.append(f"**Accuracy, {label}**\n\n" + format_table(["tower", *kinds, "mean"], rows, 1))
    times = {"before": "-before", "after the later steps": ""}
    probes = {(name, time): read(f"probe-{name}{end}.json") for name in TOWERS for time, end in times.items()}
    tested = sorted(set.intersection(*(set(found) for of in probes.values() for found in of)))
    areas = {
        of: _say(bootstrap_mean([np.array([[found[n] for n in tested] for found in seeds])]))
        for of, seeds in probes.items()
    }
    rows = [[name, *(areas[name, time] for time in times)] for name in TOWERS]
    title = f"**Linear probe of {len(tested)} names, area under the curve, %**\n\n"
    parts.append(title + format_table(["tower", *times], rows, 1))
    found = read("retrieval.json")
    rows = []
    for way in ("image_to_text", "text_to_image"):
        of = [[one[way][f"recall@{k}"] for k in RANKS] for one in found]
        rows.append([way.replace("_", " "), *(f"{100 * value:.1f}" for value in np.mean(of, axis=0))])
    title = f"**Recall of TCL among {found[0]['num_images']} images, %, mean over seeds**\n\n"
    parts.append(title + format_table(["search", *(f"at {k}" for k in RANKS)], rows, 1))
    return "\n\n".join(parts)


def _by_kind(found: Sequence[Mapping[str, Sequence[bool]]], kinds: Sequence[str]) -> list[np.ndarray]:
    return [np.array([one[kind] for one in found], dtype=float) for kind in kinds]


def _say(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def main() -> None:
    """Command line: train, test, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.prestages", description="moai-nano from four starts; goes on where it was stopped."
    )
    parser.add_argument("--config", type=Path, default=Path("configs/prestages.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/prestages"), help="folder of everything")
    arguments = parser.parse_args()
    try:
        print(run_prestages(load_settings(PrestageSettings, arguments.config), arguments.out))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
