"""Serves a page that shows what models see of phrases in an image, and what they call it.

    python -m ccl_jax.tools.demo --model A [--model B]

A and B are workdirs, Hugging Face or OpenCLIP folders, or hub names; two are shown side by side.
The page asks nothing of the network. Needs `pip install "ccl_jax[demo]"`. docs/demo.md says more.
"""

import functools
import os
import sys

from absl import app, flags, logging

_MODEL = flags.DEFINE_multi_string("model", [], "Workdir, folder or hub name; one or two.")
_TOKENIZER = flags.DEFINE_multi_string("tokenizer", [], "In place of the models' own: one or each.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "0.0.0.0 opens the page to the whole network.")
_PORT = flags.DEFINE_integer("port", 7860, "0 for any that is free.", 0, 65535)
_MEGABYTES = flags.DEFINE_float("max_mb", 20, "Of an image file.", 0, 1e6)
_MEGAPIXELS = flags.DEFINE_float("max_megapixels", 50, "Of an image.", 0, 1e6)
_PHRASES = flags.DEFINE_integer("max_phrases", 20, "In one request.")
_PROMPTS = flags.DEFINE_integer("max_prompts", 2000, "Class names times templates in one request.")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    # Imported late, so that --help answers at once.
    from ccl_jax.evaluation import demo, demo_page

    try:
        names, tokenizers = _MODEL.value, _TOKENIZER.value
        if len(names) not in (1, 2):
            raise ValueError(f"{len(names)} models were given; give one or two, as in --model A")
        if len(tokenizers) not in (0, 1, len(names)):
            raise ValueError(f"{len(tokenizers)} tokenizers were given; give one or each")
        limits = demo.Limits(
            file_bytes=int(2**20 * _MEGABYTES.value),
            pixels=int(1e6 * _MEGAPIXELS.value),
            phrases=_PHRASES.value,
            prompts=_PROMPTS.value,
        )
        listening = demo_page.bind(_HOST.value, _PORT.value)
        demo_page.require_gradio()
        from ccl_jax.training import serving

        each = (tokenizers * len(names))[: len(names)] or [None] * len(names)
        models = {
            label: serving.open_model(name, tokenizer=tokenizer, batch_size=1)
            for label, name, tokenizer in zip(demo.labels_of(names), names, each, strict=True)
        }
        shown = demo.Demo(models, limits)
        shown.warm_up()
    except ValueError as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    tell = functools.partial(print, f"The page is at {address} (Ctrl+C ends it)", flush=True)
    demo_page.serve(shown, listening, tell)


if __name__ == "__main__":
    app.run(_main)
