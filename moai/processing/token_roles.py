"""Token roles: the values of ``mm_token_type_ids``."""

#: 0 is everything that bypasses the mixture: padding, answers, decoded tokens.
NO_ROLE, IMAGE_ROLE, LANGUAGE_ROLE = 0, 1, 2
