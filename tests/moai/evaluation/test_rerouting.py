"""`moai reroute`: references, kernels, gradient steps, and a run that survives kills."""

import json
import shutil

import pytest
import torch
from pipeline_builders import build_scene, draw_image
from training_builders import write_tiny_checkpoint
from typer.testing import CliRunner

from mixer import Routing
from moai import Pipeline
from moai.cli import app
from moai.evaluation import rerouting
from moai.evaluation.result_folder import read_rows
from moai.models.moai.rerouting import References, descend, fit_kernel, list_routings, score_answers
from moai.pipeline.queries import pair_queries

WORDS = ["scenes", "per_kind=4", "image_size=32", "num_objects=[1,3]", "kinds=[existence,reading]", "max_new_tokens=3"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipeline(tiny):
    return Pipeline.from_pretrained(tiny, [])


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(tiny, out, "--json")


def run(tiny, out, *words, code=0):
    asked = ["reroute", str(tiny), *WORDS, "--out", str(out), "--steps", "2", "--batch-size", "3", *words]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == code, result.output + result.stderr
    return result.output + result.stderr


def encode(pipeline, questions):
    images, scenes = [draw_image(n) for n in range(len(questions))], [build_scene()] * len(questions)
    queries = pair_queries(images, questions, scenes)
    pipeline.prepare_queries(queries, 1)
    _, inputs, _ = pipeline.encode_queries(queries, 1, {})
    return inputs, [
        pipeline.answering.encode_choice(answer, inputs) for answer in ("yes", "it is a dog")[: len(questions)]
    ]


def test_losses_are_those_of_single_answers_when_a_batch_is_scored(pipeline):
    inputs, answers = encode(pipeline, ["What is it?", "Where is the cat?"])
    for routing in (None, "uniform", list_routings(len(pipeline.model.config.mixer_config.layers))[2]):
        with torch.no_grad():
            together = score_answers(pipeline.model, inputs, answers, routing)
            again = score_answers(pipeline.model, inputs, answers, routing, **together.encoded)
        options = {"choices": ["yes", "it is a dog"]} | ({} if routing is None else {"routing": routing})
        told = pipeline(draw_image(0), "What is it?", build_scene(), options=options, is_reporting=True).report
        assert -together.losses[0] * len(answers[0]) == pytest.approx(told["choices"]["yes"], abs=1e-3)
        torch.testing.assert_close(together.losses, again.losses)
    with torch.no_grad():
        gates = score_answers(pipeline.model, inputs, answers).gates
    assert gates.shape[2:] == (2, 3)
    torch.testing.assert_close(gates.sum(dim=-1), torch.ones(gates.shape[:3]))


def test_steps_make_the_neighbours_answers_likelier_and_leave_the_model_alone(pipeline):
    inputs, answers = encode(pipeline, ["What is it?", "Where is the cat?"])
    model, shares = pipeline.model, torch.tensor([0.75, 0.25])
    start = torch.full((len(model.config.mixer_config.layers), 2, 3), 1 / 3)
    found = descend(model, inputs, answers, shares, start, 6)
    losses = []
    for weights in (start, found):
        routing = Routing("given", weights=weights.expand(2, *weights.shape))
        with torch.no_grad():
            losses.append((shares * score_answers(model, inputs, answers, routing).losses).sum().item())
    assert losses[1] < losses[0]
    assert all(parameter.grad is None for parameter in model.parameters())


def build_references(**fields):
    torch.manual_seed(0)
    centers = torch.eye(8)[:2].repeat_interleave(20, dim=0)  # two heaps, which two routings serve
    losses = torch.ones(40, 17)
    losses[:20, 3], losses[20:, 7] = 0.1, 0.3
    given = {"embeddings": centers + 0.05 * torch.randn(40, 8), "losses": losses, "num_neighbours": 4, "bandwidth": 1.0}
    return References(**given | fields, content={"num_layers": 2})


def test_neighbours_choose_the_routing_that_serves_them(tmp_path):
    references = build_references()
    asked = torch.eye(8)[:2]
    assert references.pick(asked).tolist() == [3, 7]
    averaged = references.average(asked, torch.full((2, 2, 2, 3), 1 / 3))
    torch.testing.assert_close(averaged, references.routings[[2, 6]])
    everybody = build_references(num_neighbours=40, bandwidth=100.0)
    assert everybody.pick(asked).tolist() == [3, 3]
    size, bandwidth, told = fit_kernel(references.embeddings, references.losses, [str(n) for n in range(40)])
    assert told[f"{size} neighbours, bandwidth {bandwidth}"] == pytest.approx(0.2)
    assert told["static"] == pytest.approx(0.55) and told["gated"] == 1
    with pytest.raises(ValueError, match="two images"):
        fit_kernel(references.embeddings, references.losses, ["one"] * 40)
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    for name in ("a.safetensors", "b.safetensors"):
        with pytest.raises(ValueError, match="moai reroute"):
            References.load(tmp_path / name)


def test_nobody_votes_about_the_own_image_when_a_kernel_is_chosen():
    references = build_references()
    images = [str(n % 20) if n < 20 else "same" for n in range(40)]  # nothing but its own image knows routing 7
    _, _, told = fit_kernel(references.embeddings, references.losses, images)
    assert min(told.values()) > 0.5


def test_every_method_is_told_beside_the_gates_when_a_run_ends(done, tiny):
    out, told = done
    content = json.loads(told[told.index("{") : told.rindex("}") + 1])
    assert content["results"].keys() == {
        "model", "static", "static-per-kind", "picked", "picked-shuffled", "averaged", "averaged-shuffled", "descended",
        "oracle",
    }  # fmt: skip
    scores = {name: table["all"]["value"] for name, table in content["results"].items()}
    assert scores["oracle"] >= max(scores[name] for name in ("model", "static", "static-per-kind", "picked"))
    assert all("p" in table["all"] for table in content["against_model"].values())
    assert content["cpu_seconds_per_question"].keys() == {"embed", "descend", "answer"}
    references = References.load(out / "references" / "references.safetensors")
    assert references.losses.shape == (8, 17) and references.losses.isfinite().all()
    assert references.content["test"]["split"] == "validation"
    # A routing's answers are those of `moai evaluate` under it.
    routing = json.dumps(content["routings"]["routing-03"])
    given = ["evaluate", str(tiny), *WORDS, "--out", str(out / "one"), "--option", f"routing=[{routing},{routing}]"]
    layers = references.content["num_layers"]
    given[-1] = f"routing={json.dumps([content['routings']['routing-03']] * layers)}"
    assert CliRunner().invoke(app, given).exit_code == 0
    answers = [[row["given"] for row in read_rows(path)] for path in (out / "one", out / "samples.routing-03.jsonl")]
    assert answers[0] == answers[1]


def test_run_goes_on_where_it_was_killed(done, tiny, tmp_path, monkeypatch):
    out, _ = done
    wanted = {path.relative_to(out): path.read_bytes() for path in out.rglob("samples*.jsonl") if path.parent == out}
    scored, cut = [], tmp_path / "out"
    monkeypatch.setattr(rerouting, "_PART", 3)
    original = rerouting._score_part

    def score_or_die(*given):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(given)
        return original(*given)

    monkeypatch.setattr(rerouting, "_score_part", score_or_die)
    run(tiny, cut, code=130)
    assert len(list((cut / "references").glob("part-*"))) == 2
    monkeypatch.setattr(rerouting, "_score_part", lambda *given: (scored.append(given), original(*given))[1])
    run(tiny, cut)
    assert len(scored) == 3
    for name, content in wanted.items():
        assert (cut / name).read_bytes() == content, name
    with (cut / "samples.averaged.jsonl").open("r+b") as file:
        file.truncate(100)
    run(tiny, cut)
    assert {name: (cut / name).read_bytes() for name in wanted} == wanted
    assert "noise" in run(tiny, cut, "noise=3", code=1)


def test_answers_follow_references_when_they_are_an_option(done, tiny, tmp_path):
    out, _ = done
    file = out / "references" / "references.safetensors"
    pipe, references = Pipeline.from_pretrained(tiny, []), References.load(file)
    images, questions = [draw_image(n) for n in range(4)], ["What?", "Where is it?", "Why?", "Is there a dog?"]
    scenes = [build_scene()] * 4
    together = pipe(images, questions, scenes, options={"reroute": str(file)}, max_new_tokens=4)
    forced = References(references.embeddings, references.losses.roll(1, dims=1), 4, 1.0, references.content)
    queries = pair_queries(images, questions, scenes)
    pipe.prepare_queries(queries, 1)
    _, inputs, _ = pipe.encode_queries(queries, 1, {})
    for given, told in (
        (references, together),
        (forced, pipe(images, questions, scenes, options={"reroute": forced}, max_new_tokens=4)),
    ):
        numbers = given.pick(rerouting.embed_prompts(pipe.model, inputs).embeddings).tolist()
        for number, image, question, answer in zip(numbers, images, questions, told, strict=True):
            options = {"routing": given.routings[number - 1]} if number else {}
            assert pipe(image, question, scenes[0], options=options, max_new_tokens=4).answer == answer.answer
    draw_image(0).save(tmp_path / "a.png")
    asked = ["ask", str(tmp_path / "a.png"), "What?", "--model", str(tiny), "--verbalizers", "none", "--option"]
    alone = CliRunner().invoke(app, [*asked, f"reroute={file}"])
    assert alone.exit_code == 0, alone.output + alone.stderr
    both = CliRunner().invoke(app, [*asked, f"reroute={file}", "--option", "routing=uniform"])
    assert both.exit_code == 1 and "got both" in both.output + both.stderr


def test_references_of_another_model_are_refused(done, tiny, tmp_path):
    out, _ = done
    other, pipe = tmp_path / "other", Pipeline.from_pretrained(tiny, [])
    next(iter(pipe.model.model.mixers.parameters())).data.add_(0.1)
    pipe.save_pretrained(other)
    shutil.copy(out / "references" / "references.safetensors", tmp_path)
    told = run(other, tmp_path / "out", "--references", str(tmp_path / "references.safetensors"), code=1)
    assert "references of this model" in told


def test_only_chosen_routings_are_answered_when_no_bound_is_asked_for(done, tiny, tmp_path):
    out, told = done
    full = json.loads(told[told.index("{") : told.rindex("}") + 1])
    references = out / "references" / "references.safetensors"
    told = run(tiny, tmp_path / "out", "--json", "--no-oracle", "--references", str(references))
    content = json.loads(told[told.index("{") : told.rindex("}") + 1])
    assert "oracle" not in content["results"] and set(content["routings"]) <= set(full["routings"])
    files = {path.name for path in (tmp_path / "out").glob("samples.routing-*.jsonl")}
    assert files == {f"samples.{name}.jsonl" for name in content["routings"]}
    for name, table in content["results"].items():
        assert table == full["results"][name], name
