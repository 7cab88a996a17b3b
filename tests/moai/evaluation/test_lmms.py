"""lmms-eval's plug-in: requests on a real pipeline; with lmms-eval (`make test-lmms-eval`) local tasks too, in
its process and over HTTP.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from pipeline_builders import draw_image
from serving_builders import serving
from training_builders import write_tiny_checkpoint

from moai import Pipeline
from moai.evaluation.lmms_requests import ChatRequest, RequestAnswerer, cut_at, parse_batch_size, split_settings

REPO_ROOT = Path(__file__).resolve().parents[3]
needs_lmms = pytest.mark.skipif(find_spec("lmms_eval") is None, reason="needs lmms-eval: make test-lmms-eval")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipeline(tiny):
    return Pipeline.from_pretrained(tiny, [])


def ask(text: str, seed: int = 0, **fields) -> ChatRequest:
    parts = [{"type": "image", "url": draw_image(seed)}, {"type": "text", "text": text}]
    return ChatRequest.from_messages([{"role": "user", "content": parts}], **fields)


def test_mixed_requests_keep_their_order_and_answers_when_answered_in_batches(pipeline):
    short, long = {"max_new_tokens": 2, "temperature": 0}, {"max_new_tokens": 5, "until": ["\n"], "num_beams": 1}
    requests = [ask(f"What {k}?", k % 2, settings=(short, long)[k % 2]) for k in range(5)]
    together = RequestAnswerer(pipeline, 4).generate(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = RequestAnswerer(pipeline, 1).generate([request])
        direct = pipeline(request.images[0], request.messages[0]["content"][1]["text"],
                          max_new_tokens=request.settings["max_new_tokens"]).answer  # fmt: skip
        assert answer == alone == cut_at(direct, request.settings.get("until", ()))


def test_one_bad_request_costs_no_other_when_it_cannot_be_answered(pipeline, caplog):
    requests = [ask("What?"), ask(" "), ask("What " * 3000), ask("What?")]
    answers = RequestAnswerer(pipeline, 4).generate(requests)
    assert answers[0] and answers[0] == answers[3] and answers[2] == ""
    assert "request 2 has no answer" in caplog.text


def test_choices_have_the_log_probabilities_of_the_pipeline_when_ranked(pipeline):
    (scores,) = RequestAnswerer(pipeline, 2).rank([ask("Is it?", choices=("yes", "no"))])
    wanted = pipeline(draw_image(0), "Is it?", options={"choices": "yes,no"}, is_reporting=True).report["choices"]
    assert scores == pytest.approx(wanted)


def test_settings_are_those_of_the_task_when_split():
    assert split_settings({}) == ((), 128, {})
    assert split_settings({"until": "\n", "max_new_tokens": 3, "temperature": 0, "top_p": 1.0, "do_sample": False}) == (
        ("\n",), 3, {},
    )  # fmt: skip
    assert split_settings({"temperature": 0.8, "top_p": 0.9, "num_beams": 2})[2] == {
        "do_sample": True, "temperature": 0.8, "top_p": 0.9, "num_beams": 2,
    }  # fmt: skip
    assert cut_at("a\nb", ["\n", ""]) == "a"
    assert [parse_batch_size(value, 5) for value in ("3", 2, "auto", "auto:2")] == [3, 2, 5, 5]
    assert parse_batch_size("auto") == 8
    for wrong in ("many", 0, None):
        with pytest.raises(ValueError, match="batch size"):
            parse_batch_size(wrong)


def test_videos_are_refused_by_name_when_a_message_holds_one():
    with pytest.raises(ValueError, match="'video'"):
        ChatRequest.from_messages([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}])


def test_benchmarks_are_the_papers_when_read():
    tasks = yaml.safe_load((REPO_ROOT / "configs" / "evaluate" / "benchmarks.yaml").read_text("utf-8"))["tasks"]
    assert len(tasks) == 13 and tasks["mme"]["published"] == {"MME-P": 1714, "MME-C": 561}
    if find_spec("lmms_eval") is not None:
        from lmms_eval.tasks import TaskManager

        assert set(tasks) <= set(TaskManager().all_tasks)


_UTILS = """
def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"] + "\\nAnswer the question using a single word or phrase."


def judge(doc, results):
    return {"exact": float(results[0].strip().lower() == doc["answer"].lower())}
"""
ROWS = {"question": ["a?", "b?", "c?"], "answer": ["yes", "no", "x"]}
_TASK = """
dataset_path: parquet
dataset_kwargs: {data_files: {test: %s}}
task: %s
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: %s
process_results: !function utils.judge
metric_list:
  - {metric: exact, aggregation: mean, higher_is_better: true}
"""


def run_lmms(folder: Path, settings: dict[str, dict], *words: str) -> dict[str, list[dict]]:
    """Have lmms-eval ask the questions of :data:`ROWS` as one local task per entry of `settings`; samples by task."""
    from datasets import Dataset, Image

    for name, chosen in settings.items():
        table = Dataset.from_dict(ROWS | {"image": [draw_image(k) for k in range(3)]}).cast_column("image", Image())
        table.to_parquet(folder / f"{name}.parquet")
        text = _TASK % (folder / f"{name}.parquet", name, json.dumps(chosen))
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "utils.py").write_text(_UTILS, encoding="utf-8")
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "lmms_eval", *words, "--tasks", ",".join(settings), "--include_path", str(folder)]
    command += ["--output_path", str(folder / "out"), "--log_samples"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    files = list((folder / "out").rglob("*_samples_*.jsonl"))  # the exit code says nothing
    assert len(files) == len(settings), told.stdout[-3000:] + told.stderr[-3000:]
    named = {next(name for name in settings if name in file.name): file for file in files}
    return {name: [json.loads(line) for line in file.read_text("utf-8").splitlines()] for name, file in named.items()}


def check_samples(samples: list[dict], pipeline: Pipeline, max_new_tokens: int, until: tuple[str, ...] = ()) -> None:
    """Check that lmms-eval was told what the pipeline answers."""
    for sample, question, seed in zip(samples, ROWS["question"], range(3), strict=True):
        asked = f"{question}\nAnswer the question using a single word or phrase."
        answer = pipeline(draw_image(seed), asked, max_new_tokens=max_new_tokens).answer
        texts = sample["filtered_resps"][0], cut_at(answer, until)
        assert len({text.encode("ascii", "ignore") for text in texts}) == 1  # no valid text is logged otherwise


@needs_lmms
def test_three_local_tasks_are_answered_when_lmms_eval_runs(tiny, pipeline, tmp_path):
    from lmms_eval.models import list_available_models

    assert "moai" in list_available_models()
    settings = {"tiny_pope": {"max_new_tokens": 3}, "tiny_mme": {"max_new_tokens": 2}}
    settings["tiny_textvqa"] = {"max_new_tokens": 4, "until": ["\n"]}
    words = ["--model", "moai", "--model_args", f"pretrained={tiny},verbalizers=none", "--batch_size", "auto"]
    for name, samples in run_lmms(tmp_path, settings, *words).items():
        check_samples(samples, pipeline, settings[name]["max_new_tokens"], settings[name].get("until", ()))


@needs_lmms
def test_served_model_is_asked_when_lmms_eval_is_a_client(tiny, pipeline, tmp_path):
    with serving(tiny, max_new_tokens=5) as app:
        address = f"base_url=http://127.0.0.1:{app.state.port}/v1"
        words = [
            "--model",
            "async_openai",
            "--model_args",
            f"model=tiny,{address},api_key=none,num_cpus=3,max_retries=1",
        ]
        wanted = {"tiny_short": {"max_new_tokens": 2}, "tiny_long": {"max_new_tokens": 16384}}
        told = run_lmms(tmp_path, wanted, *words)
    check_samples(told["tiny_short"], pipeline, 2)
    check_samples(told["tiny_long"], pipeline, 5)  # as many as the server gives
