"""What transformers computes from exported folders; needs torch (the extra "torch")."""

import io

import numpy as np
import pytest
from PIL import Image

from ccl_jax.data.images import transform_image
from ccl_jax.training import loop
from ccl_jax.training.export import export

from .exported_runs import CAPTIONS, METRICS, make_run, make_tokenizer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

TEXTS = [*CAPTIONS, "", "a text of many more words than there is room for in eight tokens"]


def prepared(photos, predictor):
    """The images as the evaluators read them from files."""
    rows = []
    for photo in photos:
        file = io.BytesIO()
        photo.save(file, "png")
        rows.append(transform_image(file.getvalue(), "photo", **predictor.image_options))
    return np.stack(rows)


@pytest.mark.parametrize("images", ["squash", "center_crop_floor"])
@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_transformers_loads_it_unchanged_and_agrees(family, images, make_config, tmp_path):
    import transformers

    config = make_config()
    with config.unlocked():
        if family == "clip":
            config.model.image.update({"pool": "cls", "embed_dim": 12})
            config.model.text.update({"pool": "eot", "embed_dim": 12})
        config.data.update({"eval_transform": images, "mean": (0.4, 0.5, 0.6)})
    run = make_run(tmp_path / "run", config, make_tokenizer(), metrics=METRICS)
    out = str(tmp_path / "out")
    architecture = export(run.folder, out).architecture
    model = transformers.AutoModel.from_pretrained(out).eval()
    assert type(model).__name__ == architecture
    _, info = getattr(transformers, architecture).from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info

    rng = np.random.default_rng(0)
    sides = ((40, 24), (16, 16), (19, 33))
    photos = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in sides]
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    texts = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    pixels = processor(photos, return_tensors="pt")
    with torch.no_grad():
        found = model(**pixels, **texts)

    predictor = loop.load_predictor(run.config, run.folder)
    ours = predictor.images(prepared(photos, predictor)), predictor.texts(TEXTS)
    np.testing.assert_allclose(found.image_embeds.numpy(), ours[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.text_embeds.numpy(), ours[1], rtol=0, atol=1e-5)
    scale = np.exp(run.params["log_scale"])
    bias = run.params["bias"] if family == "siglip" else 0
    logits = scale * ours[0] @ ours[1].T + bias
    np.testing.assert_allclose(found.logits_per_image.numpy(), logits, rtol=0, atol=1e-4)
