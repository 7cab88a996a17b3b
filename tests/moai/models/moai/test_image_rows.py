"""Images that stand several times in a batch pass the vision tower once; a coarser map has fewer patches."""

import numpy as np
import torch
from builders import build_tiny_inputs, build_tiny_model
from PIL import Image

from moai.models.moai.image_processing_moai import MoAIImageProcessor, compute_map_pixel_values
from moai.models.moai.image_rows import find_different_rows


def test_tower_sees_each_image_once_when_nothing_is_learned() -> None:
    model, images = build_tiny_model(), torch.randn(3, 3, 28, 28)
    seen: list[int] = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    repeated = images[[0, 1, 0, 2, 1]]
    with torch.no_grad():
        features = model.get_image_features(images, output_hidden_states=True)
        again = model.get_image_features(repeated, output_hidden_states=True)
    assert seen == [3, 3]
    assert torch.equal(again.pooler_output, features.pooler_output[[0, 1, 0, 2, 1]])
    assert torch.equal(again.hidden_states[-1], features.hidden_states[-1][[0, 1, 0, 2, 1]])
    model.get_image_features(repeated)
    assert seen[-1] == 5  # gradients are the sum over the rows: each has its own


def test_rows_with_equal_sums_stay_apart_when_they_differ() -> None:
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0, 0, 0] = images[1, 1, 2, 3] = 1.0
    with torch.no_grad():
        given, places = find_different_rows(images)
    assert given is images and places is None


def test_images_and_maps_pass_the_tower_together_when_they_are_few() -> None:
    model = build_tiny_model()
    inputs, seen = build_tiny_inputs(model.config), []
    counting = model.model.vision_tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with torch.no_grad():
        features = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        alone = model(**inputs, image_features=features).logits
        seen.clear()
        outputs = model(**inputs, output_hidden_states=True)
        answers = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert seen == [4, 4]
    assert outputs.image_outputs.last_hidden_state.shape[0] == outputs.image_outputs.hidden_states[0].shape[0] == 2
    torch.testing.assert_close(outputs.logits, alone, atol=1e-6, rtol=0)
    seen.clear()
    with torch.no_grad():
        wide = {name: torch.cat([value, value.flip(0)]) for name, value in inputs.items()}
        wide["pixel_values"] = wide["pixel_values"] + torch.arange(4.0)[:, None, None, None]
        model(**wide)
    assert seen == [4, 2]  # 4 images, then the 2 maps that differ: on a CPU one pass of all is slower
    counting.remove()
    with torch.no_grad():
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), answers)


def test_map_has_fewer_patches_when_it_is_coarser() -> None:
    processor = MoAIImageProcessor(size={"height": 28, "width": 28})
    painted = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    coarse = compute_map_pixel_values(processor, [painted], side=14)
    assert coarse.shape == (1, 3, 14, 14) and compute_map_pixel_values(processor, [painted]).shape == (1, 3, 28, 28)
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config)
    with torch.no_grad():
        whole = model(**inputs).logits
        inputs["auxiliary_pixel_values"] = torch.from_numpy(coarse).expand(2, -1, -1, -1)
        half = model(**inputs).logits
    assert half.shape == whole.shape and not torch.equal(half, whole)
