"""The demo page itself: its layout in Gradio, and its server, which asks nothing of the network."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import logging

from ccl_jax.evaluation import demo_html
from ccl_jax.evaluation.benchmarks.class_sets import prompts
from ccl_jax.evaluation.demo import DEFAULT_SHARPNESS, TEMPLATES, Demo, has_pacl
from ccl_jax.evaluation.visualization import MAPS

if TYPE_CHECKING:
    import gradio

_WAITING = 16  # visitors in the queue; the next one is told to come back
_KEPT_SECONDS = 3600  # of an upload
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; font-src 'self' data:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)
_CSS = (
    # Gradio quotes names of fonts, and system-ui in quotes is no font.
    ".gradio-container { --font: system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; "
    "width: 100%; max-width: 80rem !important; margin: 0 auto !important; }\n" + demo_html.CSS
)


def require_gradio() -> None:
    """Imports Gradio, its telemetry off.

    Raises:
      ValueError: if it is not installed.
    """
    # Read when Gradio is imported, or at each start.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError('the demo page needs Gradio: pip install "ccl_jax[demo]"') from error


def bind(host: str, port: int) -> socket.socket:
    """Takes an address, so that one in use is known before models are loaded.

    Raises:
      ValueError: if it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
            taken.listen()
        except OSError:
            taken.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"cannot serve at {host}:{port} ({reason}); give another --host or --port"
        ) from error
    return taken


def serve(demo: Demo, at: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serves the page until SIGINT or SIGTERM, in the main thread. `require_gradio` comes first.

    Args:
      demo: what answers.
      at: of `bind`.
      ready: called when the page can be opened.
    """
    import fastapi
    import gradio as gr
    import uvicorn

    # The server ends gracefully, then raises the signal again, which must not skip the clean-up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="ccl_jax_demo_") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        app = fastapi.FastAPI(openapi_url=None, lifespan=_starting(ready))

        @app.middleware("http")
        async def _add_policy(request: fastapi.Request, call_next):
            response = await call_next(request)
            response.headers["Content-Security-Policy"] = _POLICY
            response.headers["Referrer-Policy"] = "no-referrer"
            return response

        page = build(demo)
        page.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)
        gr.mount_gradio_app(
            app,
            page,
            path="",
            footer_links=[],
            show_error=False,
            max_file_size=demo.limits.file_bytes,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            theme=_theme(),
            css=_CSS,
        )
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[at])


def build(demo: Demo) -> gradio.Blocks:
    """Lays the page out: the request on top, the answers below it."""
    import gradio as gr

    with gr.Blocks(
        title="ccl_jax demo",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS),
    ) as page:
        gr.Markdown(f"# What {' and '.join(map(_code, demo.models))} see")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                image = _image_field(demo)
            with gr.Column(min_width=280):
                phrases, kinds, sharpness = _phrase_fields(demo)
        with gr.Accordion("Zero-shot labels", open=True, elem_id="zero-shot"):
            classes, templates = _label_fields()
        button = gr.Button("Show", variant="primary", elem_id="show")
        answers = gr.HTML(elem_id="answers", min_height=40, padding=False)
        gr.on(
            [button.click, phrases.submit],
            functools.partial(_show, demo),
            [image, phrases, kinds, sharpness, classes, templates],
            answers,
            concurrency_limit=1,
            api_visibility="private",
            # What is no image is told by `_show`; Gradio would open it before that, without limits.
            preprocess=False,
        )
    return page


def _show(demo: Demo, image, phrases, kinds, sharpness, classes, templates) -> str:
    """The answers to a request, or what was wrong with it, as HTML."""
    try:
        answers = demo.answer(
            (image or {}).get("path"),
            phrases or "",
            classes=classes or "",
            templates=templates or "",
            kinds=kinds or (),
            sharpness=float(sharpness),
        )
        return demo_html.answers_html(answers)
    except ValueError as error:
        return demo_html.error_html(str(error))
    except Exception:
        # The page stays up for the next visitor, whatever this request has met.
        logging.exception("A request to the demo page failed")
        return demo_html.error_html("this went wrong; the server's log says why")


def _image_field(demo: Demo):
    import gradio as gr

    limits = demo.limits
    image = gr.Image(
        label=f"Image (up to {limits.file_bytes / 2**20:g} MB, {limits.pixels / 1e6:g} megapixels)",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=320,
        elem_id="image",
    )
    image.async_move_resource_to_block_cache = _uploads_only(image)
    return image


def _phrase_fields(demo: Demo):
    import gradio as gr

    offered = [k for k in MAPS if k != "pacl" or any(map(has_pacl, demo.models.values()))]
    phrases = gr.Textbox(
        label=f"Phrases, by semicolon or line (up to {demo.limits.phrases})",
        placeholder="a red cup; the dog",
        lines=3,
        elem_id="phrases",
    )
    kinds = gr.CheckboxGroup(
        [(demo_html.TITLES[kind], kind) for kind in MAPS],
        value=offered,
        label="Maps (all if none is chosen)",
        elem_id="maps",
    )
    sharpness = gr.Slider(
        1,
        100,
        value=DEFAULT_SHARPNESS,
        step=1,
        label="Sharpness of the attention",
        info="1 as in the CCL loss; the larger, the more the best patches stand out",
        elem_id="sharpness",
    )
    return phrases, kinds, sharpness


def _label_fields():
    import gradio as gr

    with gr.Row(equal_height=False):
        classes = gr.Textbox(
            label="Class names, by line, semicolon or comma",
            placeholder="cat, dog, bird",
            lines=3,
            max_lines=6,
            min_width=280,
            elem_id="classes",
        )
        with gr.Column(min_width=280):
            templates = gr.Dropdown(
                [*TEMPLATES, *((_described(name), name) for name in prompts())],
                value=TEMPLATES[0],
                label="Prompts",
                info="Choose, or type one with {} for the class name",
                allow_custom_value=True,
                elem_id="templates",
            )
            known = gr.Dropdown(
                list(prompts()), value=None, label="Fill in class names of", elem_id="known"
            )
    known.input(
        lambda name: "\n".join(prompts()[name]["classes"]) if name in prompts() else "",
        known,
        classes,
        api_visibility="private",
    )
    return classes, templates


def _starting(ready: Callable[[], None]) -> Callable:
    @contextlib.asynccontextmanager
    async def lifespan(_):
        ready()
        yield

    return lifespan


def _theme() -> gradio.Theme:
    import gradio as gr

    theme = gr.themes.Default(font=["sans-serif"], font_mono=["monospace"])
    # Grey of enough contrast to read on white.
    grey = "*neutral_500"
    return theme.set(body_text_color_subdued=grey, block_info_text_color=grey)


def _uploads_only(component) -> Callable:
    """Of addresses in place of uploads, which Gradio would fetch: they are refused."""
    inner = component.async_move_resource_to_block_cache

    async def move(path):
        if path and "://" in str(path):
            raise ValueError("the image is an address; upload a file")
        return await inner(path)

    return move


def _code(name: str) -> str:
    return "`" + name.replace("`", "'") + "`"


def _described(name: str) -> str:
    count = len(prompts()[name]["templates"])
    return f"{name}: {count} prompts" if count > 1 else f"{name}: {prompts()[name]['templates'][0]}"
