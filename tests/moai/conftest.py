"""A processor on a small tokenizer of its own."""

import pytest
from processing_builders import PATCHES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from moai import InternLM2Tokenizer, MoAIProcessor
from moai.models.moai.image_processing_moai import MoAIImageProcessor
from moai.models.moai.tokenization_internlm2 import IMAGE_TOKEN
from recipes.nano.tokenization_training import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> InternLM2Tokenizer:
    corpus = ["AI assistant should give answers. USER: ASSISTANT: user assistant", "How many dogs?\nTwo dogs, yes."] * 9
    return train_tokenizer(corpus, 360, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def image_processor() -> MoAIImageProcessor:
    return MoAIImageProcessor(size={"height": 28, "width": 42})


@pytest.fixture
def processor(tokenizer: InternLM2Tokenizer, image_processor: MoAIImageProcessor) -> MoAIProcessor:
    return MoAIProcessor(image_processor, tokenizer, num_image_tokens=PATCHES)


@pytest.fixture(scope="module")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the other make (Rust, byte-level, ChatML, no BOS, no padding token), as SmolLM2's and Qwen's."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        ["How many dogs are there?"], trainers.BpeTrainer(special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", unk_token="<|endoftext|>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", IMAGE_TOKEN]})
    tokenizer.add_tokens(["<tool_call>"])
    return tokenizer


@pytest.fixture
def chatml_processor(
    byte_level_tokenizer: PreTrainedTokenizerFast, image_processor: MoAIImageProcessor
) -> MoAIProcessor:
    return MoAIProcessor(image_processor, byte_level_tokenizer, num_image_tokens=PATCHES)
