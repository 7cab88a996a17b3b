"""The page: three files, what it must know, and drawings of what was found. It asks as every client does."""

from __future__ import annotations

import io
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from verbalizers import draw_scene
from verbalizers.core.scene import keep_kinds

from ..bundled import find_bundled
from ..processing.image_loading import load_image
from .chat_messages import Overlay, describe_error
from .engine import Engine
from .media import MediaReader
from .scene_reading import read_scene
from .settings import ServingSettings

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["add_page"]

_FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/page.css": ("page.css", "text/css"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
#: Bundled images and what may be asked about them.
EXAMPLES = (
    ("street.jpg", "What is written on the sign?"),
    ("street.jpg", "Where is the balloon?"),
    ("page.png", "What is written on the page?"),
)


def add_page(app: FastAPI, engine: Engine, settings: ServingSettings, media: MediaReader) -> None:
    """Add the page to an application.

    Args:
        app: The application.
        engine: Knows the verbalizers; the page asks through ``/v1/chat/completions``.
        settings: Name and limits.
        media: Reads images.
    """
    folder = files("moai.serving") / "page"
    examples = [(name, question) for name, question in EXAMPLES if find_bundled("examples", name)]

    def add_file(path: str, name: str, kind: str) -> None:
        content = (folder / name).read_bytes()
        app.add_api_route(path, lambda: Response(content, media_type=kind, headers=_HEADERS), include_in_schema=False)

    for path, (name, kind) in _FILES.items():
        add_file(path, name, kind)

    @app.get("/page/settings", include_in_schema=False)
    async def show_settings() -> dict[str, Any]:
        return {
            "model": settings.name,
            "kinds": engine.kinds,
            "needs_key": settings.api_key is not None,
            "max_image_bytes": settings.max_image_bytes,
            "max_drawn_images": settings.max_drawn_images * ("images" in engine.pipeline.answering.served_options),
            "examples": [{"image": f"/page/examples/{name}", "question": question} for name, question in examples],
        }

    @app.get("/page/examples/{name}", include_in_schema=False)
    async def show_example(name: str) -> Response:
        path = find_bundled("examples", name) if name in {each for each, _ in examples} else None
        if path is None:
            return JSONResponse(describe_error("expected an example, got another name.", 404), 404)
        kind = "image/png" if path.suffix == ".png" else "image/jpeg"
        return Response(path.read_bytes(), media_type=kind, headers=_HEADERS)

    @app.post("/page/overlay", include_in_schema=False)
    async def draw(body: Overlay, request: Request) -> Response:
        def work() -> bytes:
            max_pixels = engine.pipeline.answering.max_image_pixels
            image = load_image(media.read(body.image), max_pixels)
            return _encode(draw_scene(keep_kinds(read_scene(body.scene, max_pixels), body.kinds), image))

        try:
            return Response(await run_in_threadpool(work), media_type="image/jpeg")
        except (ValueError, RecursionError) as error:
            return JSONResponse(describe_error(str(error), 400), 400)


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()
