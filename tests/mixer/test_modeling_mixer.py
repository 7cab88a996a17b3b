"""The mixture: streams, masks, experts, identity at birth."""

import pytest
import torch

from mixer import Gate, LowRankProjection, MixerConfig, Mixers, Routing, TokenStream, resolve_routing

WIDTH, LAYERS = 32, (2, 5)
GATED = Routing("gated")


def build_mixers(*, is_loud: bool = True, **fields) -> Mixers:
    """Mixers with gates that differ and full-size outputs, in float64."""
    sizes = {"hidden_size": WIDTH, "layers": LAYERS, "num_heads": 4, "rank": 8}
    mixers = Mixers(MixerConfig(**sizes | fields)).double()
    if is_loud:
        with torch.no_grad():
            for module in mixers.modules():
                if isinstance(module, Gate):
                    module.weight.normal_()
                    module.bias.normal_()
            for layer in mixers.layers:
                for expert in (*layer.image_experts, *layer.language_experts):
                    expert.output.up.mul_(4)
    return mixers


def mix(mixers: Mixers, states: torch.Tensor, auxiliary, roles: torch.Tensor, routing: Routing = GATED, layer: int = 5):
    return mixers(
        states,
        layer_idx=layer,
        auxiliary_states=auxiliary,
        image=TokenStream.from_roles(roles == 1),
        language=TokenStream.from_roles(roles == 2),
        routing=routing,
    )


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# Unequal counts, streams in any order and interleaved, a row without image, one without language, one with neither.
ROLES = torch.tensor(
    [
        [0, 0, 1, 1, 1, 2, 2, 2, 0, 0],
        [2, 2, 1, 2, 1, 1, 1, 1, 2, 2],
        [0, 2, 2, 2, 2, 0, 2, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
)


@pytest.mark.parametrize("has_auxiliary", [True, False])
@pytest.mark.parametrize(
    "routing", ["gated", {"top_k": 1}, {"top_k": 2}, "uniform", {"mode": "random_expert", "seed": 4}]
)
@pytest.mark.parametrize(("side", "qk_norm"), [("left", False), ("right", True)])
def test_mixer_batch_equals_singles_when_counts_are_unequal(has_auxiliary, routing, side: str, qk_norm: bool) -> None:
    mixers = build_mixers(qk_norm=qk_norm)
    states, auxiliary = draw(len(ROLES), 10, WIDTH), draw(len(ROLES), 4, WIDTH) if has_auxiliary else None
    resolved = resolve(routing)
    together, reported = mix(mixers, states, auxiliary, ROLES, resolved)
    for row, roles in enumerate(ROLES):
        # alone, and with more padding on one side
        padding = (3, 0) if side == "left" else (0, 3)
        alone_roles = torch.nn.functional.pad(roles[None], padding)
        alone_states = torch.nn.functional.pad(states[row : row + 1], (0, 0, *padding), value=1e3)
        row_auxiliary = None if auxiliary is None else auxiliary[row : row + 1]
        alone, alone_reported = mix(mixers, alone_states, row_auxiliary, alone_roles, resolved)
        kept = alone[:, padding[0] : alone.shape[1] - padding[1]]
        assert torch.allclose(together[row], kept[0], atol=1e-12, rtol=0), f"row {row}"
        for stream in ("image", "language"):
            count = int((roles == {"image": 1, "language": 2}[stream]).sum())
            assert torch.allclose(
                getattr(reported, stream)[row, :count], getattr(alone_reported, stream)[0, :count], atol=1e-6
            )


def test_mixer_leaves_other_positions_bit_unchanged_when_role_is_zero() -> None:
    states = draw(len(ROLES), 10, WIDTH)
    mixed, _ = mix(build_mixers(), states, draw(len(ROLES), 4, WIDTH), ROLES)
    assert torch.equal(mixed[ROLES == 0], states[ROLES == 0])
    assert ((mixed - states)[ROLES != 0].abs().amax(dim=-1) > 1e-3).all()


def test_mixer_streams_do_not_see_positions_of_role_zero_when_those_change() -> None:
    mixers, auxiliary = build_mixers(), draw(len(ROLES), 4, WIDTH)
    states = draw(len(ROLES), 10, WIDTH)
    changed = torch.where((ROLES == 0)[..., None], states + 7, states)
    first, second = (mix(mixers, each, auxiliary, ROLES)[0] for each in (states, changed))
    assert torch.equal(first[ROLES != 0], second[ROLES != 0])


def test_mixer_equals_the_sum_of_single_experts_when_given_their_weights() -> None:
    mixers, states, auxiliary = build_mixers(), draw(5, 10, WIDTH), draw(5, 4, WIDTH)
    weights = torch.tensor([0.5, 0.2, 0.3])
    parts = []
    for expert in range(3):
        only = torch.eye(3)[expert]
        parts.append(mix(mixers, states, auxiliary, ROLES[:2].repeat(3, 1)[:5], resolve(only))[0])
    expected = sum(weight * part for weight, part in zip(weights.double(), parts, strict=True))
    got = mix(mixers, states, auxiliary, ROLES[:2].repeat(3, 1)[:5], resolve(weights))[0]
    assert torch.allclose(got, expected, atol=1e-6)
    assert (parts[0] - parts[1]).abs().max() > 1e-2 and (parts[1] - parts[2]).abs().max() > 1e-2


def resolve(routing, num_layers: int = 2) -> Routing:
    return resolve_routing(routing, MixerConfig(hidden_size=WIDTH, layers=tuple(range(num_layers))))


@pytest.mark.parametrize(
    ("stream", "expert", "source"),
    [(0, 0, "auxiliary"), (0, 1, 2), (0, 2, 1), (1, 0, "auxiliary"), (1, 1, 1), (1, 2, 2)],
)
def test_expert_listens_to_its_own_source_only_when_alone(stream: int, expert: int, source) -> None:
    # Each expert's output must follow its source and no other: this fixes which expert is which.
    mixers = build_mixers()
    roles = torch.tensor([[1, 1, 1, 2, 2, 2]])
    states, auxiliary = draw(1, 6, WIDTH), draw(1, 4, WIDTH)
    weights = torch.zeros(2, 3)
    weights[stream, expert] = 1
    weights[1 - stream, 2] = 1
    watched = 0 if stream == 0 else 3  # a token of the stream
    base = mix(mixers, states, auxiliary, roles, resolve(weights))[0][0, watched]
    for kind in ("auxiliary", 1, 2):
        new_states, new_auxiliary = states.clone(), auxiliary.clone()
        if kind == "auxiliary":
            new_auxiliary += draw(1, 4, WIDTH)
        else:
            others = (roles[0] == kind) & (torch.arange(6) != watched)
            new_states[:, others] += draw(int(others.sum()), WIDTH)
        moved = (mix(mixers, new_states, new_auxiliary, roles, resolve(weights))[0][0, watched] - base).abs().max()
        assert (moved > 1e-4) == (kind == source), f"{kind} moved it by {moved}"


def test_experts_attend_alike_when_their_inputs_grow_and_qk_norm_is_on() -> None:
    """Loud states saturate an expert without: all weight on one token, and no gradient to its queries."""
    states, auxiliary = draw(1, 6, WIDTH), draw(1, 5, WIDTH)
    shares = {}
    for qk_norm in (False, True):
        mixers = build_mixers(qk_norm=qk_norm)
        expert = mixers.layers[0].language_experts[0]
        query = expert.project_queries(30 * states)
        attended = (query @ expert.project(30 * auxiliary)[0].transpose(-1, -2) / (WIDTH // 4) ** 0.5).softmax(-1)
        expert(30 * states, 30 * auxiliary, None).square().sum().backward()
        # What a query's direction still changes, as a share of what the value projection gets.
        shares[qk_norm] = attended.amax(-1).mean(), expert.query.up.grad.norm() / expert.value.up.grad.norm()
    assert shares[False][0] > 0.95 and shares[True][0] < 0.8
    assert shares[True][1] > 3 * shares[False][1]


def test_mixer_gives_no_weight_to_an_expert_when_its_source_is_absent() -> None:
    _, reported = mix(build_mixers(), draw(5, 10, WIDTH), None, ROLES)
    assert (reported.image[..., 0] == 0).all() and (reported.language[..., 0] == 0).all()
    assert (reported.language[2, :, 1] == 0).all()  # no image in this sample
    assert (reported.image[3, :, 1] == 0).all()  # no language in this sample
    for weights, mask in ((reported.image, reported.image_mask), (reported.language, reported.language_mask)):
        assert torch.allclose(weights.sum(-1), mask.float(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("routing", ["gated", {"top_k": 1}, {"top_k": 2}, "uniform", torch.tensor([3.0, 1.0, 1.0])])
def test_mixer_weights_sum_to_one_in_float32_when_any_dtype(dtype: torch.dtype, routing) -> None:
    mixers = build_mixers().to(dtype)
    mixed, reported = mix(mixers, draw(5, 10, WIDTH).to(dtype), draw(5, 4, WIDTH).to(dtype), ROLES, resolve(routing))
    assert mixed.dtype == dtype and mixed.isfinite().all()
    for weights, mask in ((reported.image, reported.image_mask), (reported.language, reported.language_mask)):
        assert weights.dtype == torch.float32
        assert torch.allclose(weights.sum(-1), mask.float(), atol=1e-6)
        assert (weights >= 0).all()


def test_mixer_reports_gates_as_wide_as_each_stream_when_asked() -> None:
    _, reported = mix(build_mixers(), draw(5, 10, WIDTH), draw(5, 4, WIDTH), ROLES, layer=2)
    assert reported.layer_idx == 2
    assert reported.image.shape == (5, 5, 3) and reported.language.shape == (5, 5, 3)
    assert reported.image_mask.sum(1).tolist() == [3, 5, 0, 3, 0]
    assert reported.language_mask.sum(1).tolist() == [3, 5, 5, 0, 0]


def test_mixer_layers_differ_when_asked_for_another_decoder_layer() -> None:
    mixers, states = build_mixers(), draw(2, 10, WIDTH)
    first, second = (mix(mixers, states, None, ROLES[:2], layer=layer)[0] for layer in LAYERS)
    assert (first - second).abs().max() > 1e-2


@pytest.mark.parametrize("use_activation", [True, False])
@pytest.mark.parametrize("width", [64, 256])
def test_new_mixer_starts_near_the_identity_with_live_gradients_when_inserted(use_activation: bool, width: int) -> None:
    mixers = build_mixers(is_loud=False, hidden_size=width, rank=16, use_activation=use_activation)
    states = draw(2, 60, width).requires_grad_()
    roles = torch.cat([torch.ones(2, 40), torch.full((2, 20), 2)], dim=1)
    mixed, _ = mix(mixers, states, draw(2, 8, width), roles)
    change = ((mixed - states).norm() / states.norm()).item()
    assert 0.01 < change < 0.4
    (mixed * draw(2, 60, width)).sum().backward()
    norms = {
        name: parameter.grad.norm().item() / parameter.norm().clamp_min(1e-3).item()
        for name, parameter in mixers.layers[1].named_parameters()
    }
    assert len(norms) == 2 * 3 * 4 * 2 + 4  # streams x experts x projections x factors, and two gates
    quiet = {name: norm for name, norm in norms.items() if norm < 1e-2}
    assert not quiet


@pytest.mark.parametrize(("width", "rank"), [(64, 8), (256, 64), (1024, 64)])
def test_new_projection_keeps_variance_alive_when_activated(width: int, rank: int) -> None:
    tokens = torch.randn(64, width)
    projected = torch.nn.functional.gelu(LowRankProjection(width, rank)(tokens))
    assert 0.7 < projected.std() < 2.5
    # and through a second pair, as values and outputs are
    again = torch.nn.functional.gelu(LowRankProjection(width, rank)(projected))
    assert 0.7 < again.std() < 3.5


def test_projection_is_the_product_of_its_factors_when_called() -> None:
    projection = LowRankProjection(12, 3).double()
    tokens = draw(5, 12)
    assert torch.allclose(projection(tokens), tokens @ (projection.up @ projection.down).T, atol=1e-12)
    assert not any(isinstance(module, torch.nn.Linear) for module in projection.modules())


def test_mixer_runs_no_loop_over_samples_when_the_batch_grows() -> None:
    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return function(*args, **kwargs or {})

    counts = []
    for batch_size in (2, 8):
        roles = ROLES[:2].repeat(batch_size // 2, 1)
        with torch.no_grad(), Counter() as counter:
            mix(build_mixers(), draw(batch_size, 10, WIDTH), draw(batch_size, 4, WIDTH), roles)
        counts.append(counter.count)
    assert counts[0] == counts[1]


def test_token_stream_packs_and_returns_tokens_when_scattered() -> None:
    stream = TokenStream.from_roles(ROLES == 1)
    states = draw(5, 10, WIDTH)
    packed = stream.gather(states)
    for row in range(5):
        expected = states[row, ROLES[row] == 1]
        assert torch.equal(packed[row, : len(expected)], expected)
    doubled = stream.scatter(states, packed * 2)
    assert torch.equal(doubled, torch.where((ROLES == 1)[..., None], states * 2, states))


def test_token_stream_has_no_mask_when_every_row_is_full() -> None:
    # None is what lets scaled_dot_product_attention take its fast kernels.
    stream = TokenStream.from_roles(torch.tensor([[True, False, True], [False, True, True]]))
    assert stream.mask is None and stream.key_mask is None and stream.positions.tolist() == [[0, 2], [1, 2]]
