"""Draws where a model sees phrases in an image.

    python -m ccl_jax.tools.visualize --model A --image X.jpg --phrases "a red cup; the dog" \\
        --output DIR

A is a workdir, a Hugging Face or OpenCLIP folder, or a hub name. DIR gets a heat map for each
phrase (XAC's attention, the patches' cosines, and PACL's where the model has a patch embedder),
segmentations by the highest phrase, and a contact sheet of them all.
"""

import os
import sys

from absl import app, flags, logging

_MODEL = flags.DEFINE_string("model", None, "Workdir, folder or hub name.", required=True)
_IMAGE = flags.DEFINE_string("image", None, "Image file.", required=True)
_PHRASES = flags.DEFINE_string("phrases", None, "Phrases, by semicolon.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the pictures.", required=True)
_MAPS = flags.DEFINE_list(
    "maps", [], "attention, similarity or pacl, by comma; all that the model has if empty."
)
_SHARPNESS = flags.DEFINE_float(
    "sharpness", 1.0, "Of the attention: 1 as in the CCL loss; 20 shows the best patches alone."
)
_STRIDE = flags.DEFINE_integer(
    "stride", 0, "Patch stride in pixels; below the patch size maps are finer. 0: the model's."
)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder or file, in place of the model's own.")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    # Imported late, so that --help answers at once.
    from ccl_jax.evaluation import visualization
    from ccl_jax.training import serving

    try:
        phrases = visualization.split_phrases(_PHRASES.value)
        image = visualization.read_image(_IMAGE.value)
        predictor = serving.open_model(_MODEL.value, tokenizer=_TOKENIZER.value, batch_size=1)
        if _STRIDE.value:
            predictor = serving.with_patch_stride(predictor, _STRIDE.value)
        found = visualization.visualize(
            predictor, image, phrases, kinds=_MAPS.value, sharpness=_SHARPNESS.value
        )
        names = visualization.write_pictures(found, _OUTPUT.value)
    except ValueError as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")
    print("cosine with the whole image:")
    for phrase, score in zip(found.phrases, found.scores, strict=True):
        print(f"  {score:+.3f}  {phrase}")
    print(f"{len(names)} files in {_OUTPUT.value}, among them contact_sheet.png")


if __name__ == "__main__":
    app.run(_main)
