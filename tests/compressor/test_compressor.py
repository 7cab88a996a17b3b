"""The compressor: order, padding, windows, cost."""

import pytest
import torch
from torch import nn

from compressor import ARCHITECTURES, Compressor, CompressorConfig
from compressor.encoder import rotary_tables, rotate, windowed_attention

WIDTH = 24


def build_compressor(architecture: str, **fields) -> Compressor:
    sizes = {"hidden_size": WIDTH, "num_latents": 5, "num_layers": 3, "num_heads": 2, "head_dim": 8}
    return Compressor(CompressorConfig(architecture=architecture, **sizes | fields)).double().eval()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def relation_sentences() -> tuple[torch.Tensor, torch.Tensor]:
    """ "man is on horse" and "horse is on man" as word embeddings of shape (1, 4, D)."""
    man, is_, on, horse = draw(4, WIDTH)
    return torch.stack([man, is_, on, horse])[None], torch.stack([horse, is_, on, man])[None]


@pytest.mark.parametrize("text_window", [0, 1, 2, 256])
def test_encoder_sees_who_is_on_whom_when_subject_and_object_swap(text_window: int) -> None:
    compressor = build_compressor("encoder", text_window=text_window)
    first, second = relation_sentences()
    change = (compressor(first) - compressor(second)).abs().max()
    assert change > 1e-2


def test_perceiver_is_blind_to_order_when_subject_and_object_swap() -> None:
    compressor = build_compressor("perceiver")
    first, second = relation_sentences()
    assert torch.allclose(compressor(first), compressor(second), atol=1e-6, rtol=0)
    other_words = compressor(draw(1, 4, WIDTH))
    assert (compressor(first) - other_words).abs().max() > 1e-2  # it is not simply deaf


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("text_window", [0, 2])
@pytest.mark.parametrize("has_map", [True, False])
def test_compressor_ignores_padding_when_rows_are_unequal(
    architecture: str, side: str, text_window: int, has_map: bool
) -> None:
    compressor = build_compressor(architecture, text_window=text_window)
    counts, longest = [7, 1, 0, 4], 9
    maps = draw(len(counts), 6, WIDTH) if has_map else None
    texts = [draw(count, WIDTH) for count in counts]
    padded, mask = 1e3 * draw(len(counts), longest, WIDTH), torch.zeros(len(counts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        start = {"left": longest - len(text), "right": 0, "both": (longest - len(text)) // 2}[side]
        padded[row, start : start + len(text)] = text
        mask[row, start : start + len(text)] = 1
    together = compressor(padded, mask, maps)
    for row, text in enumerate(texts):
        alone = compressor(text[None], None, None if maps is None else maps[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=1e-9, rtol=0), f"row {row} of {counts[row]} words"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compressor_gives_finite_latents_and_gradients_when_a_row_has_no_word(architecture: str) -> None:
    compressor = build_compressor(architecture, text_window=2)
    text = draw(2, 7, WIDTH).requires_grad_()
    mask = torch.tensor([[False] * 7, [True] * 7])
    latents = compressor(text, mask)
    latents.pow(2).sum().backward()
    assert latents.isfinite().all() and text.grad.isfinite().all()
    assert (text.grad[0] == 0).all() and (text.grad[1] != 0).any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compressor_reads_the_map_when_given(architecture: str) -> None:
    compressor = build_compressor(architecture)
    text, patches = draw(2, 3, WIDTH), draw(2, 6, WIDTH)
    with_map, without = compressor(text, None, patches), compressor(text)
    assert (with_map - without).abs().max() > 1e-2
    assert compressor(text[:, :0], None, patches).shape == (2, 5, WIDTH)  # a map without words


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compressor_sends_gradient_everywhere_when_trained(architecture: str) -> None:
    compressor = build_compressor(architecture, text_window=2)
    compressor(draw(2, 9, WIDTH), None, draw(2, 4, WIDTH)).pow(2).mul(draw(5, WIDTH)).sum().backward()
    silent = [name for name, parameter in compressor.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 31])
@pytest.mark.parametrize("window", [1, 3, 8])
def test_windowed_attention_equals_banded_full_attention_when_padded(length: int, window: int) -> None:
    query, key, value = draw(3, 2, 2, length, 8)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, : length // 3] = False
    index = torch.arange(length)
    band = (index[:, None] - index[None]).abs() <= window
    allowed = band & mask[:, None, None, :]
    has_any = allowed.any(-1)  # rows of padding whose reach holds only padding mean nothing
    expected = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed | ~allowed.any(-1, keepdim=True)
    )
    got = windowed_attention(query, key, value, mask, window)
    assert got.shape == expected.shape and got.isfinite().all()
    compare = has_any.expand(2, 2, length)
    assert torch.allclose(got[compare], expected[compare], atol=1e-12, rtol=0)


def test_encoder_equals_full_attention_when_window_covers_the_text() -> None:
    torch.manual_seed(3)
    full = build_compressor("encoder", text_window=0)
    text, mask = draw(2, 12, WIDTH), torch.ones(2, 12, dtype=torch.bool)
    mask[0, :5] = False
    for window in (11, 12, 500):
        windowed = build_compressor("encoder", text_window=window)
        windowed.load_state_dict(full.state_dict())
        assert torch.allclose(full(text, mask), windowed(text, mask), atol=1e-9, rtol=0)


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Record the most elements any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0
        self.num_operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        self.num_operations += 1
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def measure(compressor: Compressor, batch_size: int, length: int) -> LargestTensor:
    mask = torch.ones(batch_size, length, dtype=torch.bool)
    mask[0, : length // 2] = False
    with torch.no_grad(), LargestTensor() as recorder:
        compressor(draw(batch_size, length, WIDTH), mask)
    return recorder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compressor_memory_grows_linearly_when_text_is_long(architecture: str) -> None:
    compressor = build_compressor(architecture, text_window=16)
    short, long = measure(compressor, 1, 1000).num_elements, measure(compressor, 1, 5000).num_elements
    assert long < 5000 * 5000 / 10, "some tensor is (A, A)"
    assert long <= 5.5 * short


def test_compressor_memory_meter_sees_the_square_when_the_window_is_off() -> None:
    compressor = build_compressor("encoder", text_window=0)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert measure(compressor, 1, 1000).num_elements >= 1000 * 1000


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compressor_runs_no_loop_over_samples_when_the_batch_grows(architecture: str) -> None:
    compressor = build_compressor(architecture, text_window=16)
    assert measure(compressor, 2, 40).num_operations == measure(compressor, 8, 40).num_operations


def test_compressor_attends_to_the_first_word_when_the_text_is_long() -> None:
    # Far words do not see each other through the window, but the latents see them all.
    compressor = build_compressor("encoder", text_window=4)
    text = draw(1, 3000, WIDTH)
    changed = text.clone()
    changed[:, 0] *= -1
    assert (compressor(text) - compressor(changed)).abs().max() > 1e-6


def test_rotary_positions_count_words_only_when_padding_stands_before() -> None:
    cosine, sine = rotary_tables(torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]]).bool(), 8, 10000.0)
    assert torch.equal(cosine[0, 0, 2:], cosine[1, 0, :2]) and torch.equal(sine[0, 0, 2:], sine[1, 0, :2])


def test_rotation_makes_scores_depend_on_distance_only_when_shifted() -> None:
    tables = rotary_tables(torch.ones(1, 10, dtype=torch.bool), 8, 10000.0)
    query, key = (draw(1, 1, 1, 8).expand(1, 1, 10, 8) for _ in range(2))
    scores = rotate(query, tables) @ rotate(key, tables).transpose(-1, -2)
    for distance in (-3, 0, 2):
        diagonal = scores[0, 0].diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-6)
    assert (scores[0, 0].diagonal(3)[0] - scores[0, 0].diagonal(-3)[0]).abs() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compressor_stays_finite_when_half_precision(architecture: str, dtype: torch.dtype) -> None:
    compressor = build_compressor(architecture, text_window=4).to(dtype)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0] = 0
    latents = compressor(draw(2, 12, WIDTH).to(dtype), mask, draw(2, 3, WIDTH).to(dtype))
    assert latents.dtype == dtype and latents.isfinite().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scale", [0.02, 1.0, 50.0])
def test_new_compressor_keeps_latents_apart_when_embeddings_have_any_scale(architecture: str, scale: float) -> None:
    compressor = build_compressor(architecture)
    latents = compressor(scale * draw(4, 20, WIDTH))
    assert 0.5 < latents.std() < 2
    # Different findings give different latents: the words are heard, whatever the size of their embeddings.
    assert latents.std(dim=0).mean() > 0.02


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), None, None), "text_embeds"),
        (((2, 3, WIDTH + 1), None, None), "text_embeds"),
        (((2, 3, WIDTH), (2, 4), None), "text_mask"),
        (((2, 3, WIDTH), None, (2, 4, WIDTH - 1)), "patch_embeds"),
        (((2, 3, WIDTH), None, (3, 4, WIDTH)), "3 and 2"),
    ],
)
def test_compressor_says_what_does_not_fit_when_shapes_are_wrong(shapes: tuple, message: str) -> None:
    inputs = [None if shape is None else torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        build_compressor("encoder")(*inputs)
