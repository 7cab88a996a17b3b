"""One definition of arguments: the signature of a model with a head names those of the model below it."""

import inspect

import pytest

pytest.importorskip("torch")

from moai import MoAIForConditionalGeneration, MoAIModel
from moai.models.flamingo.modeling_flamingo import FlamingoForConditionalGeneration, FlamingoModel


@pytest.mark.parametrize(
    ("outer", "inner", "made"),
    [
        (MoAIForConditionalGeneration, MoAIModel, {"is_answer"}),
        (FlamingoForConditionalGeneration, FlamingoModel, set()),
    ],
)
def test_signature_names_all_arguments_when_read(outer: type, inner: type, made: set[str]) -> None:
    names = set(inspect.signature(outer.forward).parameters)
    assert names == set(inspect.signature(inner.forward).parameters) - made | {"labels", "logits_to_keep"} | (
        names & {"suppress_image_token"}
    )
