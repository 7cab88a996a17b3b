"""``moai serve``: a model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import reporting_errors
from .options import DEFAULT_MODEL, DebugOption, TimeoutOption, VerbalizersOption

__all__ = ["serve"]


def serve(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, bundled name or hub name.")] = DEFAULT_MODEL,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 = all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 = any free one.")] = 8000,
    page: Annotated[bool, typer.Option("--page", help="Show the page for browsers.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="The model's name for clients.")] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="MOAI_API_KEY", help="What clients must send.", show_envvar=True)
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A further name of this server; '*' = any.")
    ] = None,
    allow_media_host: Annotated[
        list[str] | None, typer.Option("--allow-media-host", help="A host that http(s) images are read from.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions per pass of the model.")] = 8,
    scene_cache: Annotated[int, typer.Option("--scene-cache", min=0, help="MiB of kept scenes.")] = 256,
    max_body: Annotated[int, typer.Option("--max-body", min=1, help="MiB of a request.")] = 32,
    max_image: Annotated[int, typer.Option("--max-image", min=1, help="MiB of an encoded image.")] = 20,
    max_pixels: Annotated[
        float, typer.Option("--max-pixels", min=0.001, help="Millions of pixels of an image.")
    ] = 16.0,
    max_images: Annotated[int, typer.Option("--max-images", min=0, help="Images of a request.")] = 8,
    max_prompt_tokens: Annotated[
        int | None, typer.Option("--max-prompt-tokens", min=1, help="Of a request's texts; default: the model's.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")] = 512,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="Answers, or beams, of a request.")] = 8,
    max_drawn_images: Annotated[
        int, typer.Option("--max-drawn-images", min=0, help="Images in an answer of a model that draws (an Emu).")
    ] = 0,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, help="Requests at a time; one more is told 429.")
    ] = 64,
    request_timeout: Annotated[
        float, typer.Option("--request-timeout", min=0.1, help="Seconds that a request has; then it is told 504.")
    ] = 120.0,
    verbalizers: VerbalizersOption = None,
    timeout: TimeoutOption = 60.0,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16.")] = None,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="nf4 decoder (bitsandbytes).")] = False,
    load_in_8bit: Annotated[bool, typer.Option("--load-in-8bit", help="int8 decoder (bitsandbytes).")] = False,
    debug: DebugOption = False,
) -> None:
    """Serve a model as OpenAI's API does: moai serve moai-nano --page."""
    with reporting_errors(debug):
        from ..import_utils import require

        require("fastapi", "uvicorn", purpose="Serving")
        from .answer_settings import load_pipeline
        from .rendering import note

        choice = {"device": device, "dtype": dtype, "load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
        if api_key is not None and not api_key.strip():
            raise ValueError("expected an API key with letters, got an empty one. Leave --api-key out for none.")
        pipeline = load_pipeline(model, verbalizers, debug, **choice)
        from ..serving.app import build_app
        from ..serving.server import run_app
        from ..serving.settings import ServingSettings

        settings = ServingSettings(
            name=name or (Path(model).resolve().name if Path(model).exists() else model),
            batch_size=batch_size,
            cache_bytes=scene_cache * 2**20,
            max_body_bytes=max_body * 2**20,
            max_image_bytes=max_image * 2**20,
            max_pixels=int(max_pixels * 1_000_000),
            max_images=max_images,
            max_prompt_tokens=max_prompt_tokens,
            max_new_tokens=max_new_tokens,
            max_rows=max_rows,
            max_drawn_images=max_drawn_images,
            max_queue=max_queue,
            request_timeout_s=request_timeout,
            verbalizer_timeout_s=timeout or None,
            api_key=api_key,
            allowed_hosts=frozenset(each.lower() for each in (*(allow_host or ()), host)),
            media_hosts=frozenset(allow_media_host or ()),
            has_page=page,
        )

        def tell(open_port: int) -> None:
            shown = f"[{host}]" if ":" in host else host
            page_note = f", page at http://{shown}:{open_port}/" if page else ""
            note(f"{settings.name} answers at http://{shown}:{open_port}/v1{page_note}")

        run_app(build_app(pipeline, settings), host, port, request_timeout, tell)
