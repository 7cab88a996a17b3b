"""Values of ``mm_token_type_ids`` and of ``labels`` that tell what a token is for."""

#: 0 is everything that no expert reads: padding, answers, decoded tokens. Answers may read (`mixer.mixes_answers`).
NO_ROLE, IMAGE_ROLE, LANGUAGE_ROLE = 0, 1, 2
#: Label of positions without a loss (the ignore index of `torch.nn.functional.cross_entropy`).
IGNORE_INDEX = -100
