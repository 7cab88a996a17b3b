"""Registers the tokenizers of models that bring or name one with AutoTokenizer."""

from transformers import AutoTokenizer, BertTokenizer, RobertaTokenizer

from .registry import class_of, load_named

# For checkpoints whose tokenizer_config.json names the class, and for those of ours that name none.
_TOKENIZERS = {
    "moai": load_named("moai.models.moai.tokenization_internlm2.InternLM2Tokenizer"),
    "prismer": RobertaTokenizer,
    "tcl": BertTokenizer,
}
for _model, _class in _TOKENIZERS.items():
    AutoTokenizer.register(class_of(_model, "configuration", "Config"), tokenizer_class=_class, exist_ok=True)
