"""TCL's objective equals the original's, three steps in a row: features, losses, queues, momentum copy, gradients."""

import pytest
import torch
from sibling_outputs import load_sibling, with_prefix

from moai.checkpoints.io.key_check import check_keys
from moai.models.tcl.convert import build_config, convert_tcl_tensor, is_training_state
from moai.models.tcl.modeling_tcl import TCLModel, patch_pooling
from moai.training.tasks.tcl.losses import local_information
from moai.training.tasks.tcl.objective import TCLObjective

#: Our names of the six parts -> those of the reference.
PARTS = {
    "i2t": "loss_i2t",
    "t2i": "loss_t2i",
    "i2i": "loss_i2i",
    "t2t": "loss_t2t",
    "image_local": "loss_i2i_inMod_l",
    "text_local": "loss_t2t_inMod_l",
}


def convert_all(tensors):
    return {name: value for key, tensor in tensors.items() for name, value in convert_tcl_tensor(key, tensor).items()}


@pytest.fixture(scope="module")
def reference(golden_dir):
    return load_sibling(golden_dir, "tcl_full")


def build_objective(reference):
    account, tensors = reference
    args, state = account["args"], with_prefix(tensors, "sd.")
    bert = args["bert_config"]
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    config = build_config(shapes, args["vheads"], bert["num_attention_heads"])
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    model = TCLModel(config)
    check_keys("the reference", shapes, convert_tcl_tensor, TCLModel, config, "")
    assert config.text_config.num_hidden_layers == bert["num_hidden_layers"]
    assert (config.num_text_layers, config.projection_dim) == (bert["fusion_layer"], args["embed_dim"])
    model.load_state_dict(convert_all({key: value for key, value in state.items() if not is_training_state(key)}))
    objective = TCLObjective(model, args["queue_size"], args["momentum"])
    copied = convert_all({key: value for key, value in state.items() if is_training_state(key)})
    objective.momentum_model.load_state_dict(copied)
    objective.image_queue.copy_(state["image_queue"])
    objective.text_queue.copy_(state["text_queue"])
    objective.queue_place.copy_(state["queue_ptr"][0])
    return objective.eval()


def run_step(objective, tensors, number, alpha):
    """One forward of the original; what it does inside happens around ours."""
    step = with_prefix(tensors, f"step{number}.")
    objective.clamp_temperature()
    objective.update_momentum()
    mask = tensors["attention_mask"]
    features = objective.encode(tensors["image"], tensors["image_aug"], tensors["input_ids"], mask)
    negatives = (step["neg_image_idx"], step["neg_text_idx"])
    losses = objective(features, mask, step["masked_input_ids"], step["mlm_labels"], alpha, negatives=negatives)
    objective.enqueue(features.momentum_image_features, features.momentum_text_features)
    return features, losses


def close(got, expected):
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_objective_equals_reference_when_three_steps_follow_each_other(reference):
    account, tensors = reference
    objective = build_objective(reference)
    for step in account["steps"]:
        expected = with_prefix(tensors, f"step{step['step']}.")
        if step["temp_set_before"] is not None:
            objective.model.temperature.data.fill_(step["temp_set_before"])
        close(objective.model.temperature.detach(), expected["temp_before"])
        _, losses = run_step(objective, tensors, step["step"], step["alpha"])
        for name, theirs in PARTS.items():
            close(losses.contrasts[name].detach(), expected[theirs])
        close(losses.contrast.detach(), expected["loss_ita"])
        close(losses.matching.detach(), expected["loss_itm"])
        close(losses.words.detach(), expected["loss_mlm"])
        close(losses.total.detach(), expected["loss_total"])
        close(objective.image_queue, expected["image_queue"])
        close(objective.text_queue, expected["text_queue"])
        assert int(objective.queue_place) == int(expected["queue_ptr"])
        close(objective.model.temperature.detach(), expected["temp_after"])


def test_objective_equals_reference_in_every_intermediate_tensor(reference):
    account, tensors = reference
    objective = build_objective(reference)
    expected = with_prefix(tensors, "step1.")
    alpha = account["steps"][0]["alpha"]
    objective.update_momentum()
    mask = tensors["attention_mask"]
    features = objective.encode(tensors["image"], tensors["image_aug"], tensors["input_ids"], mask)
    named = {
        "image_embeds": features.image_states,
        "image_feat": features.image_features,
        "text_embeds": features.text_states,
        "text_feat": features.text_features,
        "image_embeds_m": features.momentum_image_states,
        "image_feat_m": features.momentum_image_features,
        "image_feat_m_l": features.image_locals,
        "image_feat_all": features.image_keys,
        "text_feat_m": features.momentum_text_features,
        "text_feat_m_l": features.text_locals,
        "text_feat_all": features.text_keys,
    }
    similarities = objective.similarities(features)
    named |= {f"sim_{name}": value for name, value in similarities.items()}
    temperature = objective.model.temperature
    named["sim_i2t_m"] = features.momentum_image_features @ features.text_keys / temperature
    named["sim_t2i_m"] = features.momentum_text_features @ features.image_keys / temperature
    named |= {f"sim_{name}_targets": value for name, value in objective.targets(features, alpha).items()}
    named |= {f"weights_{name}": objective.negative_weights(similarities[name]) for name in ("i2t", "t2i")}
    named["vl_output"], labels = objective.match(features, mask, (expected["neg_image_idx"], expected["neg_text_idx"]))
    everywhere = torch.ones_like(mask, dtype=torch.bool)
    words, teacher = objective.word_logits(features, expected["masked_input_ids"], mask, everywhere)
    named |= {"mlm_logits": words.unflatten(0, mask.shape), "logits_m": teacher.unflatten(0, mask.shape)}
    for name, value in named.items():
        close(value.detach(), expected[name])
    assert torch.equal(labels, expected["itm_labels"])
    # the fused class tokens, of which the matching head makes the logits
    head = objective.model.matching_head
    close(head(expected["vl_embeddings"]).detach(), named["vl_output"].detach())
    told = {"temp_before", "temp_after", "image_queue", "text_queue", "queue_ptr", "vl_embeddings", "itm_labels"}
    told |= {"masked_input_ids", "mlm_labels", "neg_image_idx", "neg_text_idx"}
    assert {name for name in expected if not name.startswith("loss_")} == told | set(named)


def test_momentum_copy_equals_reference_after_a_step(reference):
    _, tensors = reference
    objective = build_objective(reference)
    objective.update_momentum()
    expected = convert_all(with_prefix(tensors, "after1."))
    state = objective.momentum_model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        close(state[name], value)


def test_gradients_equal_reference(reference):
    account, tensors = reference
    objective = build_objective(reference)
    _, losses = run_step(objective, tensors, 1, account["steps"][0]["alpha"])
    losses.total.backward()
    ours = {name: parameter.grad for name, parameter in objective.model.named_parameters()}
    given = with_prefix(tensors, "grad1.")
    norms = dict(zip(account["grad"]["names_for_grad1_norms"], given.pop("norms").tolist(), strict=True))
    seen = set()
    state = with_prefix(tensors, "sd.")
    for key, norm in norms.items():
        names = [*convert_tcl_tensor(key, state[key])]
        seen.update(names)
        total = sum(ours[name].double().square().sum() for name in names).sqrt().item()
        assert total == pytest.approx(norm, abs=1e-5, rel=1e-5), key
    assert seen == {name for name, value in ours.items() if value is not None}
    for key, value in given.items():
        (name,) = convert_tcl_tensor(key, value)
        close(ours[name], value)


def test_pooling_and_local_information_equal_reference(golden_dir):
    account, tensors = load_sibling(golden_dir, "tcl_modules")
    for name in {key.split(".")[0] for key in tensors if key.startswith("pool")}:
        close(patch_pooling(tensors[f"{name}.x"]), tensors[f"{name}.out"])
    for name, mask in (("lmi_nomask", None), ("lmi_mask", tensors["lmi.mask"])):
        given = [tensors[f"lmi.{part}"].clone().requires_grad_() for part in ("global", "local", "temp")]
        loss = local_information(*given, mask)
        loss.backward()
        close(loss.detach(), tensors[f"{name}.loss"])
        for part, value in zip(("global", "local", "temp"), given, strict=True):
            expected = tensors[f"{name}.grad_{part}"]
            tolerance = 1e-4 * expected.abs().max().item()
            torch.testing.assert_close(value.grad, expected, atol=max(1e-5, tolerance), rtol=1e-4)
