"""PSGTR against the released scene-graph model: outputs of its head, and its post-processing."""

import json

import pytest
import torch
from safetensors.torch import load_file

from verbalizers.backends.scene_graph import verbalize_relations
from verbalizers.core.adapters import relations_from_psgtr
from verbalizers.core.vocabularies import PSG_PREDICATES
from verbalizers.psgtr import PSGTRConfig, PSGTRHead, PSGTRImageProcessor, PSGTROutput
from verbalizers.psgtr.conversion_psgtr import convert_psgtr_head, psgtr_sizes

CLASS_OUTPUTS = {
    "sub_logits": "subject_logits",
    "obj_logits": "object_logits",
    "rel_logits": "relation_logits",
    "sub_boxes": "subject_boxes",
    "obj_boxes": "object_boxes",
}
MASK_OUTPUTS = {"sub_masks": "subject_masks", "obj_masks": "object_masks"}


def read(golden_dir, name):
    folder = golden_dir / "psgtr"
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def head_case(golden_dir):
    tensors, about = read(golden_dir, "psgtr_head")
    official = {}
    for name, tensor in tensors.items():
        if name.startswith("q8."):
            official[name[3:]] = tensor.float() * tensors["scale." + name[3:]]
        elif name.startswith("sd."):
            official[name[3:]] = tensor
    state = convert_psgtr_head(official)
    sizes = psgtr_sizes(state)
    num_labels, num_relations = sizes.pop("num_labels"), sizes.pop("num_relations")
    config = PSGTRConfig(
        **sizes,
        id2label={i: f"class {i}" for i in range(num_labels)},
        predicate_names=[f"predicate {i}" for i in range(num_relations)],
    )
    features = [tensors[f"feat{i}"].float() for i in range(4)]
    head = PSGTRHead(config, [feature.shape[1] for feature in features]).eval()
    head.load_state_dict(state, strict=True)
    with torch.no_grad():
        outputs = head(features, output_auxiliary=True)
    return outputs, tensors, about


def test_head_classes_and_boxes_equal_release_in_every_layer(head_case):
    outputs, tensors, _ = head_case
    for official, ours in CLASS_OUTPUTS.items():
        layers = torch.stack([*(layer[ours] for layer in outputs.auxiliary_outputs), outputs[ours]])
        torch.testing.assert_close(layers, tensors[official], atol=1e-5, rtol=1e-5)


def test_head_masks_equal_release_up_to_their_storage(head_case):
    outputs, tensors, _ = head_case
    for official, ours in MASK_OUTPUTS.items():
        torch.testing.assert_close(outputs[ours], tensors[official].float(), atol=2e-3, rtol=2e-3)


def target_size(about):
    height, width = about["meta"]["img_shape"]
    return round(height / about["meta"]["scale_factor"][1]), round(width / about["meta"]["scale_factor"][0])


def post_cases(golden_dir, head_case):
    """Every post-processing reference: the folder's own, and the head's outputs carried on."""
    for path in sorted((golden_dir / "psgtr").glob("psgtr_post_*.safetensors")):
        tensors, about = read(golden_dir, path.stem)
        names = {**CLASS_OUTPUTS, **MASK_OUTPUTS}
        outputs = PSGTROutput(**{ours: tensors[official][None] for official, ours in names.items()})
        yield outputs, tensors, about
    yield head_case


def post_process(outputs, tensors, about, compat):
    thresholds = about.get("thresholds", {})
    options = {
        "num_thing_classes": thresholds.get("stuff_from_label", 80),
        "mask_threshold": thresholds.get("mask_sigmoid", 0.85),
        "subject_threshold": thresholds.get("sub_score", 0.5),
        "object_threshold": thresholds.get("obj_score", 0.5),
        "relation_threshold": thresholds.get("rel_score", 0.3),
        "duplicate_iou": thresholds.get("dedup_iou", 0.5),
    }
    wanted = len(tensors["post.complete_r_labels"])
    # Where the case does not say how many candidates were looked at, its count of distinct ones tells.
    limits = [about["max_per_img"]] if "max_per_img" in about else range(wanted, 10 * wanted + 1)
    for limit in limits:
        graph = PSGTRImageProcessor().post_process_scene_graph(
            outputs, [target_size(about)], max_triplets=limit, compat=compat, **options
        )[0]
        if len(graph.triplets.pairs) >= wanted:
            return graph
    raise AssertionError(f"never {wanted} distinct triplets")


def test_post_processing_equals_release_when_compat(golden_dir, head_case):
    for outputs, tensors, about in post_cases(golden_dir, head_case):
        graph = post_process(outputs, tensors, about, compat=True)
        assert graph.rels.tolist() == tensors["post.rels"].tolist()
        assert graph.labels.tolist() == tensors["post.result.labels"].tolist()
        assert graph.rel_pair_idxes.tolist() == tensors["post.result.rel_pair_idxes"].tolist()
        torch.testing.assert_close(graph.rel_dists, tensors["post.result.rel_dists"], atol=1e-5, rtol=1e-5)
        assert torch.equal(graph.pan_results, tensors["post.pan_img"])
        assert torch.equal(graph.masks, tensors["post.pan_masks"].bool())


def test_distinct_triplets_equal_release_when_not_compat(golden_dir, head_case):
    for outputs, tensors, about in post_cases(golden_dir, head_case):
        triplets = post_process(outputs, tensors, about, compat=False).triplets
        assert triplets.labels.tolist() == tensors["post.complete_labels"].tolist()
        assert triplets.pairs.tolist() == tensors["post.rel_pairs"].tolist()
        assert triplets.relation_labels.tolist() == tensors["post.complete_r_labels"].tolist()
        torch.testing.assert_close(triplets.boxes, tensors["post.det_bboxes"], atol=1e-3, rtol=1e-5)
        # bfloat16 rounds the release's probabilities at the mask's edge.
        differing = (triplets.masks != tensors["post.output_masks"].bool()).float().mean()
        assert differing < 0.01


def test_final_triplets_contain_the_release_s_when_not_compat(golden_dir, head_case):
    """In float32 no object vanishes because two masks tie after rounding: ours finds at least the release's."""

    def named(graph_labels, rels):
        return {(graph_labels[s], graph_labels[o], p) for s, o, p in rels}

    for outputs, tensors, about in post_cases(golden_dir, head_case):
        graph = post_process(outputs, tensors, about, compat=False)
        ours = named(graph.labels.tolist(), graph.rels.tolist())
        if len(tensors["post.result.rel_pair_idxes"]) == 0:
            assert len(graph.labels) == 0, "nothing found must not become a person everywhere"
            continue
        assert named(tensors["post.result.labels"].tolist(), tensors["post.result.rels"].tolist()) <= ours


def test_words_equal_release_when_compat(golden_dir, head_case):
    for outputs, tensors, about in post_cases(golden_dir, head_case):
        graph = post_process(outputs, tensors, about, compat=True)
        predicates = PSG_PREDICATES[: graph.rel_dists.shape[1] - 1]
        relations = relations_from_psgtr(graph, predicates=predicates, compat=True)
        for max_relations, expected in about["moai_prompt_by_num_rel"].items():
            words = verbalize_relations(relations, max_relations=int(max_relations), compat=True)
            assert words == expected


def test_official_names_are_all_known_and_fill_the_model(golden_dir):
    """The 267 names and shapes of the published head, in both spellings, on tensors without storage."""
    shapes = json.loads((golden_dir / "psgtr" / "psgtr_real_keys.json").read_text())
    official = {
        name.removeprefix("bbox_head."): torch.empty(shape, device="meta")
        for name, shape in shapes.items()
        if name.startswith("bbox_head.")
    }
    old_spelling = {
        name.replace(".self_attn.", ".attentions.0.")
        .replace(".cross_attn.", ".attentions.1.")
        .replace(".ffn.", ".ffns.0."): tensor
        for name, tensor in official.items()
    }
    converted = convert_psgtr_head(official)
    assert converted.keys() == convert_psgtr_head(old_spelling).keys()
    sizes = psgtr_sizes(converted)
    num_labels, num_relations = sizes.pop("num_labels"), sizes.pop("num_relations")
    channels = [official[f"sub_mask_head.adapter{i}.weight"].shape[1] for i in (3, 2, 1)]
    with torch.device("meta"):
        config = PSGTRConfig(
            **sizes,
            id2label={i: str(i) for i in range(num_labels)},
            predicate_names=[str(i) for i in range(num_relations)],
        )
        head = PSGTRHead(config, [*channels, official["input_proj.weight"].shape[1]])
    expected = {name: tensor.shape for name, tensor in head.state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.items()} == expected
    with pytest.raises(ValueError, match="surprise"):
        convert_psgtr_head({**official, "surprise": torch.empty(1)})
