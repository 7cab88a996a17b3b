"""data2vec equals the official code: teacher's layers, targets, loss, gradients, teacher after a step, masks."""

from functools import reduce
from random import Random

import numpy as np
import pytest
import torch
from sibling_outputs import load_sibling, with_prefix
from transformers import Data2VecTextConfig, Data2VecTextModel, Data2VecVisionConfig, Data2VecVisionModel

from moai.training.tasks.data2vec.encoders import TextEncoder, VisionEncoder
from moai.training.tasks.data2vec.losses import teacher_decay
from moai.training.tasks.data2vec.masks import draw_block_mask, draw_span_mask
from moai.training.tasks.data2vec.objective import Data2VecObjective, Data2VecStudent, follow

VARIANTS = {
    "text": {
        "l2": {"beta": 0.0},
        "scale_by_sqrt_dim": {"loss_scale": 0.0},
        "target_layer_norm": {"norm_of_mean": "layer"},
        "instance_norm_layers": {"norm_of_layers": "instance"},
        "instance_norm_targets": {"norm_of_mean": "instance"},
        "no_layer_norm": {"norm_of_layers": "none"},
        "topk1": {"target_layers": (3,)},
        "topk4": {"target_layers": (0, 1, 2, 3)},
    },
    "vision": {
        "l2": {"beta": 0.0},
        "no_post_norm": {"norm_of_mean": "none"},
        "no_layer_norm": {"norm_of_layers": "none"},
        "post_instance_norm": {"norm_of_mean": "instance"},
        "layer_instance_norm": {"norm_of_layers": "instance", "norm_of_mean": "none"},
        "loss_scale_3": {"loss_scale": 3.0},
        "fc_results": {"layer_result": "fc"},
        "var_term": {"variance_weight": 0.5, "variance_margin": 2.0},
    },
}


def close(got, expected, **tolerances):
    torch.testing.assert_close(got, expected, **({"atol": 1e-5, "rtol": 1e-5} | tolerances))


class Reference:
    """A reference output and our objective with its weights."""

    def __init__(self, golden_dir, kind):
        self.kind = kind
        self.account, self.tensors = load_sibling(golden_dir, f"data2vec_{kind}")
        args = self.args = self.account["args"]
        if kind == "text":
            config = Data2VecTextConfig(
                vocab_size=args["vocab"],
                hidden_size=args["d"],
                intermediate_size=args["ffn"],
                num_hidden_layers=args["layers"],
                num_attention_heads=args["heads"],
                max_position_embeddings=len(self.tensors["sd.sentence_encoder.embed_positions.weight"]),
                type_vocab_size=1,
                layer_norm_eps=1e-5,
                pad_token_id=args["pad"],
                bos_token_id=args["bos"],
                eos_token_id=args["eos"],
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
            encoder = TextEncoder(Data2VecTextModel(config, add_pooling_layer=False), args["mask_idx"])
            self.fields = {
                "target_layers": tuple(range(args["layers"] - args["topk"], args["layers"])),
                "layer_result": "fc",
                "norm_of_mean": "none",
                "beta": args["beta"],
                "sums_channels": True,
                "loss_scale": args["scale"],
                "copied": ("embeddings.",),
            }
            self.inputs, self.mask = self.tensors["target_tokens"], self.tensors["mask"]
        else:
            config = Data2VecVisionConfig(
                image_size=args["img"],
                patch_size=args["patch"],
                hidden_size=args["d"],
                intermediate_size=args["mlp_ratio"] * args["d"],
                num_hidden_layers=args["depth"],
                num_attention_heads=args["heads"],
                layer_norm_eps=args["norm_eps"],
                layer_scale_init_value=args["layer_scale_init_value"],
                use_mask_token=True,
                use_shared_relative_position_bias=args["shared_rel_pos_bias"],
                use_mean_pooling=False,
                drop_path_rate=0.0,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
            encoder = VisionEncoder(Data2VecVisionModel(config, add_pooling_layer=False))
            self.fields = {"target_layers": tuple(args["targets"]), "beta": args["l1_beta"]}
            self.inputs, self.mask = self.tensors["image"], self.tensors["bool_masked_pos"].bool().flatten(1)
        self.student = Data2VecStudent(encoder, args.get("head_layers", 1))
        self.head = {"text": "regression_head.", "vision": "lm_head."}[kind]
        own = with_prefix(self.tensors, "sd.")
        self.student.head.load_state_dict(with_prefix(own, self.head))
        self.load(encoder.model, own)

    def rename(self, tensors):
        """Official names -> those of transformers; projections in one become three."""
        named = {}
        for key, value in tensors.items():
            if key.startswith(self.head) or key.endswith("relative_position_index"):
                continue
            if self.kind == "text":
                key = f"sentence_encoder.{key.removeprefix('sentence_encoder.')}"
            if key.startswith("norm."):
                named[key.replace("norm.", "layernorm.")] = value
            elif ".qkv." in key:
                stem = "encoder.layer." + key.removeprefix("blocks.").removesuffix("attn.qkv.weight")
                for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    named[f"{stem}attention.attention.{part}.weight"] = rows
            elif key.endswith(("q_bias", "v_bias")):
                part = "query" if key.endswith("q_bias") else "value"
                stem = "encoder.layer." + key.removeprefix("blocks.").rpartition("attn.")[0]
                named[f"{stem}attention.attention.{part}.bias"] = value
            else:
                pairs = self.account["hf_key_map"]["substring_replacements"]
                named[reduce(lambda name, pair: name.replace(*pair), pairs, key)] = value
        return named

    def load(self, model, tensors):
        result = model.load_state_dict(self.rename(tensors), strict=False)
        assert not result.unexpected_keys
        assert {name.rpartition(".")[2] for name in result.missing_keys} <= {"relative_position_index", "weight"}
        for name in result.missing_keys:  # a token type, which fairseq's model has not
            if name.endswith("token_type_embeddings.weight"):
                torch.nn.init.zeros_(model.get_parameter(name))

    def objective(self, **changes):
        built = Data2VecObjective(self.student, **(self.fields | changes))
        self.load(built.teacher.model, with_prefix(self.tensors, "ema_sd."))
        return built


@pytest.fixture(params=["text", "vision"])
def reference(golden_dir, request):
    return Reference(golden_dir, request.param)


def test_teacher_student_and_loss_equal_reference(reference):
    tensors, objective = reference.tensors, reference.objective()
    for kind, name in (("fc", "fc"), ("end", {"text": "block_out", "vision": "end"}[reference.kind])):
        for place, result in enumerate(objective.teacher.layer_results(reference.inputs, kind)):
            close(result, tensors[f"teacher.{name}.{place}"])
    encoder = reference.student.encoder
    tokens = encoder(reference.inputs, reference.mask)
    if reference.kind == "text":
        close(tokens.detach(), tensors["student.features"])
        assert torch.equal(reference.inputs.masked_fill(reference.mask, encoder.mask_id), tensors["src_tokens"])
    else:
        close(reference.student.head(tokens).detach(), tensors["student.all_tokens"])
        with encoder._hiding(reference.mask):
            for place, result in enumerate(encoder.layer_results(reference.inputs, "end")):
                close(result, tensors[f"student.end.{place}"])
    predictions = reference.student(reference.inputs, reference.mask)
    close(predictions.detach(), tensors["pred"])
    targets = objective.targets(reference.inputs)[reference.mask]
    close(targets, tensors["target"])
    predictions.retain_grad()
    loss, count = objective.loss_of(predictions, targets), len(predictions)
    if reference.kind == "text":
        assert count == int(tensors["sample_size"])
        close(loss.detach(), tensors["loss"])
        close(loss.detach() / count, tensors["loss_normalised"])
        rows = [objective.loss_of(p[None], t[None]) for p, t in zip(predictions.detach(), targets, strict=True)]
        close(torch.stack(rows), tensors["loss_per_token"])
    else:
        loss = loss / count
        close(loss.detach(), tensors["loss"])
    loss.backward()
    close(predictions.grad, tensors["grad_pred"])
    given = with_prefix(tensors, "grad.")
    heads = with_prefix(given, reference.head)
    gradients = {name: p.grad for name, p in reference.student.encoder.model.named_parameters()}
    for name, value in reference.rename(given).items():
        close(gradients[name], value)
    for name, value in heads.items():
        close(reference.student.head.get_parameter(name).grad, value)


def test_options_equal_reference(reference):
    known = {name.split(".")[1] for name in reference.tensors if name.startswith("var.")}
    assert known == set(VARIANTS[reference.kind])
    for name, changes in VARIANTS[reference.kind].items():
        objective, expected = reference.objective(**changes), with_prefix(reference.tensors, f"var.{name}.")
        close(objective.targets(reference.inputs)[reference.mask], expected["target"])
        loss = objective(reference.inputs, reference.mask).detach()
        close(loss if reference.kind == "text" else loss / int(reference.mask.sum()), expected["loss"])


def test_teacher_equals_reference_after_a_step(reference):
    tensors, args, objective = reference.tensors, reference.args, reference.objective()
    if reference.kind == "text":
        ema = args["ema"]
        decay = teacher_decay(args["n_upd"], ema["decay"], ema["end_decay"], ema["anneal_end_step"])
        assert decay == pytest.approx(float(tensors["ema_decay_used"]), abs=1e-7)
    else:
        decay = teacher_decay(args["it"], args["decay_init"], args["decay"], args["ema_start_at"])
        assert decay == pytest.approx(float(tensors["cur_decay"]), abs=1e-12)
    before = {name: value.clone() for name, value in objective.teacher.model.named_buffers()}
    objective.advance(decay)
    expected = with_prefix(tensors, "ema_after.")
    state = objective.teacher.model.state_dict()
    for name, value in reference.rename(expected).items():
        close(state[name], value)
    for name, value in objective.teacher.model.named_buffers():
        assert torch.equal(value, before[name]), name  # integers are not averaged
    if reference.kind == "vision":  # its teacher has a head that nothing reads
        head = torch.nn.Linear(*reference.student.head.weight.shape)
        head.load_state_dict(with_prefix(tensors, "ema_sd.lm_head."))
        follow(head, reference.student.head, decay)
        for name, value in with_prefix(expected, "lm_head.").items():
            close(head.get_parameter(name).detach(), value)


def test_schedules_equal_reference(golden_dir):
    account, tensors = load_sibling(golden_dir, "data2vec_text")
    ema = account["args"]["ema"]
    schedules = {
        "text": (0.999, 0.9999, 300_000),
        "audio": (0.999, 0.9999, 30_000),
        "tiny": (ema["decay"], ema["end_decay"], ema["anneal_end_step"]),
    }
    for name, schedule in schedules.items():
        got = [teacher_decay(step, *schedule) for step in tensors["schedule.steps"].tolist()]
        np.testing.assert_allclose(got, tensors[f"schedule.{name}"].numpy(), atol=1e-12, rtol=0)
    account, tensors = load_sibling(golden_dir, "data2vec_vision")
    for start in (25000, 0):
        schedule = (account["args"]["decay_init"], account["args"]["decay"], start)
        got = [teacher_decay(step, *schedule) for step in tensors["schedule.it"].tolist()]
        np.testing.assert_allclose(got, tensors[f"schedule.start{start}"].numpy(), atol=1e-12, rtol=0)


def test_masks_equal_reference(golden_dir):
    account, tensors = load_sibling(golden_dir, "data2vec_masks")
    args = account["args"]
    limits = {"g14_120": (16, 196), "g14_75": (16, None), "g6_20": (4, 36)}
    blocks = {name.removeprefix("block."): value for name, value in tensors.items() if name.startswith("block.")}
    assert set(blocks) == set(limits)
    for name, expected in blocks.items():
        side, count = (int(number) for number in name.removeprefix("g").split("_"))
        for seed, mask in zip(args["block_seeds"], expected, strict=True):
            got = draw_block_mask(side, count, Random(seed), *limits[name])
            assert np.array_equal(got, mask.numpy().astype(bool)), name
    for index in range(3):
        tokens, expected = tensors[f"span.{index}.tokens"], tensors[f"span.{index}.masked"]
        seed = int(hash((args["span_seed"], args["span_epoch"], index)) % 1e6)
        span = args["span"]
        rng = np.random.default_rng(seed)
        mask = draw_span_mask(len(tokens), span["mask_prob"], span["mask_multiple_length"], rng)
        assert torch.equal(tokens.masked_fill(torch.from_numpy(mask), args["mask_idx"]), expected)
