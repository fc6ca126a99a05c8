"""Configs of other projects as fields of our towers."""

import doctest
import json
import math

import pytest
from tiny_checkpoints import MODELS

from ccl_jax.weights import fields, huggingface_config, open_clip_config
from ccl_jax.weights.fields import complete
from ccl_jax.weights.mapping import parameter_shapes


def read(family="siglip", text=None, vision=None, **values):
    parts = {"text_config": text or {}, "vision_config": vision or {}}
    return huggingface_config.model_config({"model_type": family, **parts, **values})[1]


@pytest.mark.parametrize("family", huggingface_config.FAMILIES)
def test_defaults_are_those_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    name = {"siglip": "Siglip", "siglip2": "Siglip2", "clip": "CLIP"}[family]
    for part, kind in (("text_config", "Text"), ("vision_config", "Vision")):
        theirs = getattr(transformers, f"{name}{kind}Config")().to_dict()
        ours = dict(huggingface_config.DEFAULTS[family][part])
        if part == "text_config" and family != "clip":
            # None there becomes the width.
            assert ours.pop("projection_size") is None
            assert theirs["projection_size"] == theirs["hidden_size"]
        assert {key: theirs[key] for key in ours} == ours
    assert read(family)["text"]["embed_dim"] == (512 if family == "clip" else 768)


def test_transformers_reads_what_we_write(model):
    transformers = pytest.importorskip("transformers")
    config = huggingface_config.config_of(model)
    kind = {"siglip": transformers.SiglipConfig, "clip": transformers.CLIPConfig}
    theirs = kind[config["model_type"]].from_dict(config).to_dict()
    assert huggingface_config.model_config(theirs)[1] == complete(model)


def test_so400m_at_384_leaves_pixels_out():
    found = read(
        vision={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
        }
    )
    image = found["image"]
    assert (image["mlp_dim"], image["patch_stride"]) == (4304, 14)
    assert huggingface_config.config_of(found)["vision_config"]["image_size"] == 384


def test_text_embeddings_of_another_width():
    found = read(text={"hidden_size": 1152, "projection_size": 1536})
    assert (found["text"]["width"], found["text"]["embed_dim"]) == (1152, 1536)


@pytest.mark.parametrize(
    ("eos", "expected"), [(2, 49_407), (49_407, 49_407), (7, 7), ([9], 9), ([2], 49_407)]
)
def test_where_clip_pools(eos, expected):
    # 2 is what configs said before transformers' pull request 24773, and means the highest id.
    assert read("clip", text={"eos_token_id": eos})["text"]["eot_id"] == expected


def test_old_clip_configs_say_it_twice():
    found = read("clip", text={"hidden_size": 512}, text_config_dict={"hidden_size": 768})
    assert found["text"]["width"] == 768


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("quick_gelu", "quick_gelu"),
    ],
)
def test_activations(name, expected):
    found = read("clip", vision={"hidden_act": name})
    assert found["image"]["activation"] == expected
    assert found["text"]["activation"] == "quick_gelu"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vision": {"hidden_act": "silu"}}, "vision_config.hidden_act = 'silu'"),
        ({"text": {"hidden_act": "relu"}}, "text_config.hidden_act = 'relu'"),
        ({"vision": {"vision_use_head": False}}, "vision_use_head is false"),
        ({"vision": {"num_channels": 4}}, "num_channels = 4"),
        ({"vision": {"image_size": [224, 256]}}, "must be square"),
        ({"family": "siglip2", "vision": {"num_patches": 250}}, "250 patches do not fill"),
        ({"family": "clip", "text": {"eos_token_id": [1, 2]}}, "one id is needed"),
        ({"family": "clip", "text": {"vocab_size": 100}}, "49407 is outside.*100 rows"),
    ],
)
def test_what_towers_cannot_express_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        read(**values)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text", {"pool": "last"}, "pools images by 'cls' and texts by 'last'"),
        ("image", {"patch_stride": 2}, "no overlapping patches"),
        ("text", {"eot_id": 2}, "eot_id 2 cannot be written"),
    ],
)
def test_what_hugging_face_cannot_express_is_refused(part, changes, message):
    model = MODELS["clip"]
    with pytest.raises(ValueError, match=message):
        huggingface_config.config_of(model | {part: model[part] | changes})


# As in OpenCLIP's model_configs.
VIT_H_14 = {
    "embed_dim": 1024,
    "vision_cfg": {
        "image_size": 224,
        "layers": 32,
        "width": 1280,
        "head_width": 80,
        "patch_size": 14,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49_408,
        "width": 1024,
        "heads": 16,
        "layers": 24,
    },
}
SO400M = {
    "embed_dim": 1152,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 384,
        "timm_model_name": "vit_so400m_patch14_siglip_384",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 32_000,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 1152,
        "heads": 16,
        "layers": 27,
        "mlp_ratio": 3.7362,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}


def test_open_clip_vit():
    found = open_clip_config.model_config({"model_cfg": VIT_H_14, "preprocess_cfg": {}})
    image, text = found["image"], found["text"]
    assert (image["heads"], image["mlp_dim"], image["embed_dim"]) == (16, 5120, 1024)
    assert (image["activation"], image["norm_eps"], text["norm_eps"]) == ("gelu", 1e-5, 1e-5)
    assert (text["pool"], text["eot_id"]) == ("eot", 49_407)
    quick = open_clip_config.model_config(VIT_H_14 | {"quick_gelu": True})
    assert quick["image"]["activation"] == quick["text"]["activation"] == "quick_gelu"
    eos = VIT_H_14["text_cfg"] | {"pool_type": "eos", "eos_id": 5}
    assert open_clip_config.model_config(VIT_H_14 | {"text_cfg": eos})["text"]["eot_id"] == 5


def test_open_clip_siglip():
    found = open_clip_config.model_config(SO400M)
    image, text = found["image"], found["text"]
    assert (image["width"], image["depth"], image["mlp_dim"]) == (1152, 27, 4304)
    assert (image["patch_stride"], image["norm_eps"], image["pool"]) == (14, 1e-6, "map")
    assert (text["mlp_dim"], text["norm_eps"], text["pool"]) == (4304, 1e-6, "last")


@pytest.mark.parametrize(
    ("config", "image", "text"),
    # Millions of parameters in OpenCLIP's docs/model_profile.csv; it counts the scale, and for
    # SigLIP the bias, with neither.
    [(VIT_H_14, 632.08, 354.03), (SO400M, 428.23, 449.73)],
    ids=["ViT-H-14", "ViT-SO400M-14-SigLIP-384"],
)
def test_open_clip_models_have_their_published_sizes(config, image, text):
    shapes = parameter_shapes(open_clip_config.model_config(config))
    for tower, millions in (("image_tower", image), ("text_tower", text)):
        count = sum(math.prod(s) for path, s in shapes.items() if path.startswith(tower))
        assert count == pytest.approx(millions * 1e6, abs=5e3)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("vit_base_patch16_siglip_224", "gelu"),
        ("vit_base_patch32_siglip_256", "gelu_tanh"),
        ("vit_large_patch16_siglip_384", "gelu"),
        ("vit_large_patch16_siglip_512", "gelu_tanh"),
        ("vit_so400m_patch14_siglip_378", "gelu"),
        ("vit_so400m_patch16_siglip_384", "gelu_tanh"),
        ("vit_giantopt_patch16_siglip_256", "gelu_tanh"),
    ],
)
def test_activations_of_timm(name, activation):
    vision = SO400M["vision_cfg"] | {"timm_model_name": name}
    found = open_clip_config.model_config(SO400M | {"vision_cfg": vision})
    assert found["image"]["activation"] == activation


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_cfg", {"ls_init_value": 1e-4}, "vision_cfg.ls_init_value = 0.0001"),
        ("vision_cfg", {"attentional_pool": True}, "vision_cfg.attentional_pool"),
        ("vision_cfg", {"brand_new": 1}, "vision_cfg.brand_new = 1"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "is of a ResNet"),
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_siglip_gap_224"}, "those of SigLIP"),
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "those of SigLIP"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name = 'roberta-base'"),
        ("text_cfg", {"embed_cls": True}, "text_cfg.embed_cls = True"),
        ("text_cfg", {"pool_type": "last"}, "neither CLIP's.*nor SigLIP's"),
        ("text_cfg", {"norm_kwargs": {"bias": False}}, "no option but eps"),
        ("text_cfg", {"act_kwargs": {"inplace": True}}, "act_kwargs"),
    ],
)
def test_what_open_clip_has_more_is_refused(part, changes, message):
    config = json.loads(json.dumps(VIT_H_14))
    config[part] |= changes
    with pytest.raises(ValueError, match=message):
        open_clip_config.model_config(config)


def test_other_models_of_open_clip():
    with pytest.raises(ValueError, match="gives no text_cfg"):
        open_clip_config.model_config({"embed_dim": 3, "vision_cfg": {}})
    with pytest.raises(ValueError, match="CoCa"):
        open_clip_config.model_config(VIT_H_14 | {"multimodal_cfg": {}})


def test_examples():
    assert doctest.testmod(fields).failed == 0
