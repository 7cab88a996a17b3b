"""What data2vec's student does not see changes nothing, whatever the tower."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from moai.training.tasks.data2vec.encoders import VisionEncoder
from moai.training.tasks.data2vec.objective import Data2VecObjective, Data2VecStudent

_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIZES |= {"image_size": 32, "patch_size": 8}
TOWERS = ("clip_vision_model", "vit", "siglip_vision_model", "data2vec-vision")


def build(family):
    torch.manual_seed(0)
    fields = {"use_mask_token": True} if family == "data2vec-vision" else {}
    return VisionEncoder(AutoModel.from_config(AutoConfig.for_model(family, **_SIZES, **fields))).eval()


@pytest.mark.parametrize("family", TOWERS)
def test_hidden_patches_are_not_seen(family):
    encoder = build(family)
    images, mask = torch.randn(2, 3, 32, 32), torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 5] = mask[1, 10] = True  # row 1 column 1, row 2 column 2
    changed = images.clone()
    changed[0, :, 8:16, 8:16] += 9
    changed[1, :, 16:24, 16:24] -= 9
    with torch.no_grad():
        assert torch.equal(encoder(images, mask), encoder(changed, mask))
        assert not torch.allclose(encoder(images), encoder(changed), atol=1e-3)
        tokens = encoder(images)
    assert tokens.shape == (2, 16, 16)
    results = encoder.layer_results(images, "end")
    assert [result.shape for result in results] == [(2, 16, 16)] * 2
    states = encoder.model(images, output_hidden_states=True).hidden_states
    torch.testing.assert_close(results[-1], states[-1][:, -16:].detach(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", TOWERS)
def test_student_learns_the_mask_token_and_the_teacher_has_no_gradient(family):
    objective = Data2VecObjective(Data2VecStudent(build(family)), (0, 1)).train()
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    objective(torch.randn(2, 3, 32, 32), mask).backward()
    assert objective.student.encoder.mask_token.grad.abs().sum() > 0
    assert all(value.grad is None for value in objective.teacher.parameters())
    assert not objective.teacher.model.training
    assert objective.student.training
