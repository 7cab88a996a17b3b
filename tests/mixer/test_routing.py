"""Routing: modes, top-k, chance, and weights given by the caller."""

from collections import Counter

import pytest
import torch

from mixer import Gate, MixerConfig, Mixers, Routing, TokenStream, draw_experts, resolve_routing

WIDTH, NUM_LAYERS = 16, 3


def resolve(asked, **defaults) -> Routing:
    return resolve_routing(asked, MixerConfig(hidden_size=WIDTH, layers=tuple(range(NUM_LAYERS)), **defaults))


def run(mixers: Mixers, states: torch.Tensor, auxiliary: torch.Tensor, routing: Routing, layer: int = 0):
    roles = torch.tensor([1, 1, 1, 2, 2]).expand(states.shape[0], -1)
    image, language = (TokenStream.from_roles(roles == role) for role in (1, 2))
    return mixers(states, layer, auxiliary, image, language, routing)


def build_mixers() -> Mixers:
    mixers = Mixers(MixerConfig(hidden_size=WIDTH, layers=tuple(range(NUM_LAYERS)), num_heads=2, rank=4)).double()
    with torch.no_grad():
        for module in mixers.modules():
            if isinstance(module, Gate):
                module.weight.normal_()
    return mixers


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_gate_keeps_the_largest_experts_when_top_k(top_k: int) -> None:
    gate = Gate(WIDTH)
    with torch.no_grad():
        gate.weight.normal_()
    tokens = torch.randn(2, 50, WIDTH)
    dense, sparse = gate(tokens), gate(tokens, top_k=top_k)
    assert ((sparse > 0).sum(-1) == top_k).all()
    kept = sparse > 0
    assert torch.equal(dense.argmax(-1), sparse.argmax(-1))
    renormalised = torch.where(kept, dense, 0) / torch.where(kept, dense, 0).sum(-1, keepdim=True)
    assert torch.allclose(sparse, renormalised, atol=1e-6)
    assert (dense.where(kept, torch.inf).amin(-1) >= dense.where(~kept, -torch.inf).amax(-1)).all()


def test_gate_chooses_among_what_is_there_when_top_k_meets_an_absent_source() -> None:
    gate = Gate(WIDTH)
    with torch.no_grad():
        gate.bias.copy_(torch.tensor([9.0, 0.0, 1.0]))
    available = torch.tensor([False, True, True]).expand(1, 1, 3)
    weights = gate(torch.zeros(1, 4, WIDTH), available, top_k=1)
    assert torch.equal(weights, torch.tensor([0.0, 0.0, 1.0]).expand(1, 4, 3))


def test_gate_computes_in_float32_when_the_model_is_bfloat16() -> None:
    gate = Gate(64)
    with torch.no_grad():
        gate.weight.normal_()
    gate = gate.to(torch.bfloat16)
    tokens = torch.randn(1, 200, 64, dtype=torch.bfloat16)
    exact = torch.softmax(tokens.double() @ gate.weight.double().T, dim=-1)
    assert (gate(tokens) - exact).abs().max() < 1e-5
    half = torch.softmax(tokens @ gate.weight.T, dim=-1)
    assert (half - exact).abs().max() > 1e-4  # what float32 spares us


@pytest.mark.parametrize("seed", [None, 7])
def test_random_expert_draws_one_per_stream_and_layer_when_resolved(seed: int | None) -> None:
    routing = resolve({"mode": "random_expert", "seed": seed})
    assert len(routing.choices) == NUM_LAYERS and all(len(pair) == 2 for pair in routing.choices)
    assert all(expert in (0, 1, 2) for pair in routing.choices for expert in pair)


def test_random_expert_repeats_when_the_seed_is_equal() -> None:
    torch.manual_seed(1)
    first = [draw_experts(NUM_LAYERS, seed=seed) for seed in range(20)]
    torch.manual_seed(2)
    assert first == [draw_experts(NUM_LAYERS, seed=seed) for seed in range(20)]
    assert len(set(first)) > 10
    torch.manual_seed(1)
    unseeded = draw_experts(NUM_LAYERS)
    torch.manual_seed(1)
    assert unseeded == draw_experts(NUM_LAYERS)


def test_random_expert_leaves_the_global_generator_alone_when_seeded() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    draw_experts(NUM_LAYERS, seed=3)
    assert torch.equal(torch.rand(1), expected)


def test_random_expert_is_uniform_over_streams_and_layers_when_drawn_often() -> None:
    draws = [draw_experts(NUM_LAYERS, seed=seed) for seed in range(3000)]
    for layer in range(NUM_LAYERS):
        for stream in (0, 1):
            counts = Counter(pairs[layer][stream] for pairs in draws)
            assert all(abs(counts[expert] - 1000) < 120 for expert in range(3)), counts  # 4.6 sigma
    pairs = Counter(pairs[0] for pairs in draws)  # streams are independent
    assert len(pairs) == 9 and all(abs(count - 333) < 90 for count in pairs.values())


def test_only_the_drawn_experts_get_gradient_when_random() -> None:
    mixers, routing = build_mixers(), resolve({"mode": "random_expert", "seed": 11})
    for layer in range(NUM_LAYERS):
        mixed, _ = run(mixers, draw(2, 5, WIDTH), draw(2, 4, WIDTH), routing, layer)
        mixed.pow(2).sum().backward()
    for layer, (image, language) in zip(mixers.layers, routing.choices, strict=True):
        for experts, chosen in ((layer.image_experts, image), (layer.language_experts, language)):
            for index, expert in enumerate(experts):
                grads = [parameter.grad for parameter in expert.parameters()]
                if index == chosen:
                    assert all(grad.abs().sum() > 0 for grad in grads)
                else:
                    assert all(grad is None for grad in grads)
        assert layer.image_gate.weight.grad is None and layer.language_gate.weight.grad is None


def test_random_expert_equals_its_one_hot_weights_when_compared() -> None:
    mixers, states, auxiliary = build_mixers(), draw(2, 5, WIDTH), draw(2, 4, WIDTH)
    routing = resolve({"mode": "random_expert", "seed": 5})
    one_hot = torch.eye(3)[torch.tensor(routing.choices)]  # (M, 2, 3)
    for layer in range(NUM_LAYERS):
        chance, reported = run(mixers, states, auxiliary, routing, layer)
        given, _ = run(mixers, states, auxiliary, resolve(one_hot), layer)
        assert torch.allclose(chance, given, atol=1e-12)
        assert torch.equal(reported.image[0, 0], one_hot[layer, 0])


def test_uniform_equals_a_third_each_when_compared() -> None:
    mixers, states, auxiliary = build_mixers(), draw(2, 5, WIDTH), draw(2, 4, WIDTH)
    first, reported = run(mixers, states, auxiliary, resolve("uniform"))
    second, _ = run(mixers, states, auxiliary, resolve(torch.full((3,), 1 / 3)))
    assert torch.allclose(first, second, atol=1e-6)
    assert torch.allclose(reported.image, torch.full_like(reported.image, 1 / 3))


def test_weights_reach_their_layer_stream_and_sample_when_given_in_each_shape() -> None:
    mixers, states, auxiliary = build_mixers(), draw(2, 5, WIDTH), draw(2, 4, WIDTH)
    full = torch.rand(2, NUM_LAYERS, 2, 3) + 0.1
    full = full / full.sum(-1, keepdim=True)
    for weights in (full[0, 0, 0], full[0, 0], full[0], full, full[:1]):
        expected = weights.expand(2, NUM_LAYERS, 2, 3)
        routing = resolve(weights)
        for layer in range(NUM_LAYERS):
            _, reported = run(mixers, states, auxiliary, routing, layer)
            for sample in range(2):
                assert torch.allclose(reported.image[sample], expected[sample, layer, 0].expand(3, 3), atol=1e-6)
                assert torch.allclose(reported.language[sample], expected[sample, layer, 1].expand(2, 3), atol=1e-6)


def test_weights_reach_their_tokens_when_given_per_token() -> None:
    mixers, states, auxiliary = build_mixers(), draw(1, 5, WIDTH), draw(1, 4, WIDTH)
    image, language = torch.rand(3, 3), torch.rand(NUM_LAYERS, 2, 3)
    _, gated = run(mixers, states, auxiliary, resolve(None), 1)
    _, first = run(mixers, states, auxiliary, resolve({"image": image.tolist()}), 1)
    assert torch.allclose(first.image[0], image / image.sum(-1, keepdim=True), atol=1e-6)
    assert torch.equal(first.language, gated.language)  # left to the gate
    for layer in range(NUM_LAYERS):
        _, both = run(mixers, states, auxiliary, resolve({"image": image, "language": language}), layer)
        wanted = language[layer] / language[layer].sum(-1, keepdim=True)
        assert torch.allclose(both.language[0], wanted, atol=1e-6)
    alike, _ = run(mixers, states, auxiliary, resolve({"image": torch.ones(3, 3), "language": torch.ones(2, 3)}))
    uniform, _ = run(mixers, states, auxiliary, resolve("uniform"))
    assert torch.allclose(alike, uniform, atol=1e-6)
    with pytest.raises(ValueError, match="for 2 tokens, got 5 rows"):
        run(mixers, states, auxiliary, resolve({"language": torch.ones(5, 3)}))


def test_weights_are_normalised_when_they_do_not_sum_to_one() -> None:
    assert torch.allclose(resolve(torch.tensor([2.0, 1.0, 1.0])).weights[0, 0, 0], torch.tensor([0.5, 0.25, 0.25]))


@pytest.mark.parametrize(
    "weights",
    [
        torch.ones(4),
        torch.ones(3, 3),
        torch.ones(NUM_LAYERS + 1, 2, 3),
        torch.ones(2, NUM_LAYERS, 3, 3),
        torch.ones(2, 2, NUM_LAYERS, 2, 3),
        torch.tensor(1.0),
        # No documented shape, though it would broadcast:
        torch.ones(1, 3),
        torch.ones(1, 2, 3),
        torch.ones(NUM_LAYERS, 1, 3),
        torch.ones(2, NUM_LAYERS, 1, 3),
        torch.ones(2, 1, 2, 3),
        torch.ones(0, NUM_LAYERS, 2, 3),
    ],
    ids=lambda weights: str(tuple(weights.shape)),
)
def test_weights_are_refused_when_the_shape_is_not_documented(weights: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must have shape"):
        resolve(weights)


@pytest.mark.parametrize("weights", [[-1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [float("nan"), 1, 1], [float("inf"), 1, 1]])
def test_weights_are_refused_when_they_are_no_distribution(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="finite, non-negative"):
        resolve(torch.tensor(weights))


def test_weights_are_refused_when_the_batch_differs() -> None:
    with pytest.raises(ValueError, match="batch of 2, got 3"):
        run(build_mixers(), draw(2, 5, WIDTH), draw(2, 4, WIDTH), resolve(torch.rand(3, NUM_LAYERS, 2, 3)))


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        ("dense", "mode must be one of"),
        ({"mode": "dense"}, "mode must be one of"),
        ({"topk": 2}, "keys mode, top_k and seed"),
        ({"image": [[1, 0]]}, "shape"),
        ({"image": [[1, 0, 0], [1]]}, "rows of three"),
        ({"language": [[[1, 0, 0]]] * (NUM_LAYERS + 1)}, "3 mixer layers, got 4"),
        ({"language": [[0, 0, 0]]}, "finite, non-negative"),
        ({"image": [[1, 0, 0]], "mode": "gated"}, "keys image and language"),
        ({"top_k": 0}, "1 to 3"),
        ({"top_k": 4}, "1 to 3"),
        (3, "mode name, a mapping or a tensor"),
        (Routing("uniform", weights=torch.full((1, NUM_LAYERS + 1, 2, 3), 1 / 3)), "layers"),
        (Routing("random_expert", choices=((0, 0),)), "layers"),
    ],
)
def test_routing_says_what_it_takes_when_wrong(routing, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(routing)


def test_routing_follows_the_configured_default_when_none_is_given() -> None:
    assert resolve(None, routing="uniform").mode == "uniform"
    assert resolve(None, top_k=2).top_k == 2
    assert resolve({"top_k": 1}, routing="gated").top_k == 1
    assert resolve("gated", routing="random_expert").mode == "gated"
