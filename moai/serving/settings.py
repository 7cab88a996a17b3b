"""Settings of a server: every limit in one place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ServingSettings"]


@dataclass(frozen=True)
class ServingSettings:
    """How a server answers, and what it refuses.

    Attributes:
        name: The model's name in requests and answers.
        batch_size: Most questions per pass of the model.
        cache_bytes: Memory of kept scenes.
        max_body_bytes: Longest body of a request.
        max_image_bytes: Longest encoded image.
        max_pixels: Largest image that is decoded; None = what the model's processor allows.
        max_images: Most images of a request.
        max_prompt_tokens: Longest text of a request in tokens; None = what the model reads.
        max_new_tokens: Longest answer in tokens; a request that wants more gets so many.
        max_rows: Most rows of the model's batch that a request may take: its answers, or its beams.
        max_drawn_images: Most images in an answer of a model that draws; 0 = nothing is drawn.
        max_queue: Requests at a time, those being answered included; further ones are told to come again.
        request_timeout_s: Seconds that a request has.
        verbalizer_timeout_s: Seconds per image after which a verbalizer is given up; None = no limit.
        api_key: What clients must send as a bearer token; None = nothing.
        allowed_hosts: Names under which the server may be called beside ``localhost`` and IP addresses; "*" = all.
        media_hosts: Hosts from which http(s) images are read.
        has_page: Whether the page is shown.
    """

    name: str = "moai"
    batch_size: int = 8
    cache_bytes: int = 256 * 2**20
    max_body_bytes: int = 32 * 2**20
    max_image_bytes: int = 20 * 2**20
    max_pixels: int | None = 16_000_000
    max_images: int = 8
    max_prompt_tokens: int | None = None
    max_new_tokens: int = 512
    max_rows: int = 8
    max_drawn_images: int = 0
    max_queue: int = 64
    request_timeout_s: float = 120.0
    verbalizer_timeout_s: float | None = 60.0
    api_key: str | None = None
    allowed_hosts: frozenset[str] = frozenset()
    media_hosts: frozenset[str] = frozenset()
    has_page: bool = False
