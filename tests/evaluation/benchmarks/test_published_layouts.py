"""Each benchmark in its published layout: what is right, how it is averaged, what is refused."""

import io

import numpy as np
import pytest

from ccl_jax.evaluation.benchmarks import aro, cola, pairs, valse, vl_checklist, whatsup
from ccl_jax.evaluation.benchmarks.files import MissingData, coco_names
from ccl_jax.evaluation.benchmarks.matching import Scores, pair_outcomes
from ccl_jax.evaluation.benchmarks.word_order import perturbed, shortened


def test_winogrounds_scores_by_hand():
    """Rows are images, columns captions: the published formulas, and every kind of tie."""
    cases = [
        ([[2, 1], [0, 3]], (1, 1, 1)),
        ([[2, 1], [2, 3]], (1, 0, 0)),
        ([[2, 3], [0, 4]], (0, 1, 0)),
        ([[1, 1], [1, 1]], (0, 0, 0)),
        ([[2, 1], [3, 3]], (0, 0, 0)),
    ]
    scores = Scores(np.float32([case for case, _ in cases]), np.zeros((len(cases), 2, 2)))
    found = pair_outcomes(scores)
    for n, (_, expected) in enumerate(cases):
        assert tuple(found[name][n] for name in ("text", "image", "group")) == expected


def fill_winoground(folder):
    lines = [
        '{"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", '
        '"caption_0": "red", "caption_1": "blue", "tag": "x"}',
        '{"id": 1, "image_0": "ex_1_img_0", "image_1": "ex_1_img_1", '
        '"caption_0": "green", "caption_1": "red", "tag": "x"}',
        '{"id": 2, "image_0": "gone_0", "image_1": "ex_0_img_1", '
        '"caption_0": "green", "caption_1": "red", "tag": "x"}',
    ]
    folder.text("winoground/data/examples.jsonl", "\n".join(lines))
    for name, colour in zip(("0_img_0", "0_img_1", "1_img_0", "1_img_1"),
                            ("red", "blue", "red", "red"), strict=True):  # fmt: skip
        folder.image(f"winoground/data/images/ex_{name}.png", colour)


def test_winoground(folder, values, run, fake):
    fill_winoground(folder)
    assert values(pairs.WINOGROUND) == {"group": 50, "text": 50, "image": 50}
    assert set(values(pairs.WINOGROUND, fake.Constant()).values()) == {0}
    found = run(pairs.WINOGROUND, fake.Predictor())
    assert found.left_out == {"missing image": ("2 (gone_0.png)",)}
    assert (found.headline, found.metrics["group"].chance) == ("group", pytest.approx(100 / 6))


def test_colorswap(folder, values):
    folder.json(
        "colorswap/test.json",
        [
            {"id": 3, "caption_1": "red", "caption_2": "blue",
             "image_1": "images/img_3_1.png", "image_2": "images/img_3_2.png"},
        ],
    )  # fmt: skip
    folder.image("colorswap/images/img_3_1.png", "red")
    folder.image("colorswap/images/img_3_2.png", "blue")
    assert values(pairs.COLORSWAP) == {"group": 100, "text": 100, "image": 100}


def write_parquet(folder, name, rows):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=2)
    folder.bytes(name, file.getvalue())


def parquet_image(folder, colour):
    return {"bytes": folder.encoded(colour), "path": None}


def test_bivlc(folder, values, run, fake):
    rows = [
        ("red", "blue", "red", "blue", "swap"),
        # Both images look the same: their texts are told apart by neither.
        ("red", "red", "red", "blue", "swap"),
        ("green", "blue", "green", "red", "add"),
    ]
    write_parquet(
        folder,
        "bivlc/data/test-00000-of-00001.parquet",
        [
            {"image": parquet_image(folder, a), "negative_image": parquet_image(folder, b),
             "caption": c, "negative_caption": d, "type": kind, "subtype": "obj"}
            for a, b, c, d, kind in rows
        ],
    )  # fmt: skip
    found = values(pairs.BIVLC)
    expected = {
        "i2t": [1, 0, 0], "t2i": [1, 0, 0], "group": [1, 0, 0],
        "ipos2t": [1, 1, 1], "ineg2t": [1, 0, 0], "tpos2i": [1, 0, 1], "tneg2i": [1, 0, 0],
    }  # fmt: skip
    for name, outcome in expected.items():
        assert found[name] == pytest.approx(100 * np.mean(outcome)), name
    assert (found["swap/group"], found["add/group"]) == (50, 0)
    assert "replace/group" not in found
    write_parquet(folder, "bivlc/data/test-00000-of-00001.parquet", [{"caption": "x"}])
    with pytest.raises(ValueError, match="no column"):
        pairs.BIVLC.open(folder.path)
    folder.text("bivlc/data/test-00000-of-00001.parquet", "cut")
    with pytest.raises(ValueError, match="copy it again"):
        pairs.BIVLC.open(folder.path)


def test_winoground_as_parquet(folder, values):
    images = {f"image_{i}": parquet_image(folder, c) for i, c in enumerate(("red", "blue"))}
    rows = [{"caption_0": "red", "caption_1": "blue", **images}]
    write_parquet(folder, "winoground/data/test-0.parquet", rows)
    assert values(pairs.WINOGROUND)["group"] == 100


def test_mmvp_vlm(folder, values, run, fake):
    lines = ["Question ID,Type,Statement"]
    pairs_of = [("Texts", "red", "blue"), ("Texts", "red", "red"), ("State", "green", "red")]
    for number, (kind, one, two) in enumerate(pairs_of):
        for part, said in enumerate((one, two)):
            lines.append(f"{2 * number + part + 1},{kind},{said}")
            folder.image(f"mmvp_vlm/MLLM_VLM Images/{kind}/{2 * number + part + 1}.jpg", said)
    folder.text("mmvp_vlm/Questions.csv", "\n".join(lines))
    assert values(pairs.MMVP_VLM) == {"mean": 75, "texts": 50, "state": 100}
    assert set(values(pairs.MMVP_VLM, fake.Constant()).values()) == {0}
    item = pairs.MMVP_VLM.open(folder.path)[0]
    assert item.texts == ("a photo of red", "a photo of blue")
    folder.text("mmvp_vlm/Questions.csv", "\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="pairs of rows"):
        pairs.MMVP_VLM.open(folder.path)


def genome_item(name, relation, true, false, box=(0, 0, 32, 32)):
    keys = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
    return {
        "image_path": name, "relation_name": relation, "attributes": relation.split("/"),
        "true_caption": true, "false_caption": false, **dict(zip(keys, box, strict=True)),
    }  # fmt: skip


def test_vg_relation_is_the_mean_of_relations(folder, values, run, fake):
    folder.json(
        "aro/visual_genome_relation.json",
        [
            genome_item("1.jpg", "above", "red", "blue"),
            genome_item("1.jpg", "above", "red", "green"),
            genome_item("1.jpg", "above", "blue", "red"),
            genome_item("1.jpg", "eating", "blue", "red"),
            genome_item("1.jpg", "next to", "blue", "red"),  # symmetric: in no average
            genome_item("9.jpg", "above", "red", "blue"),
        ],
    )
    folder.image("aro/images/1.jpg", "red")
    found = values(aro.RELATION)
    assert found["macro"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert found["items"] == pytest.approx(100 * 2 / 4)
    metric = run(aro.RELATION, fake.Predictor()).metrics["macro"]
    assert (metric.items, metric.total) == (4, 5)


def test_vg_relation_sees_its_box_alone(folder, values):
    image = folder.path / "aro/images/1.png"
    folder.image("aro/images/1.png", "red", (40, 20))
    from PIL import Image

    with Image.open(image) as opened:
        pixels = np.array(opened)
    pixels[:, 20:] = (0, 0, 255)
    Image.fromarray(pixels).save(image)
    folder.json(
        "aro/visual_genome_relation.json",
        [
            genome_item("1.png", "above", "red", "blue", (0, 0, 20, 20)),
            genome_item("1.png", "above", "blue", "red", (20, 0, 20, 20)),
        ],
    )
    assert values(aro.RELATION)["macro"] == 100


def test_vg_attribution_leaves_rare_pairs_out(folder, values):
    often = [genome_item("1.jpg", "small/red", "red", "blue")] * 25
    rare = [genome_item("1.jpg", "old/new", "blue", "red")] * 24
    folder.json("aro/visual_genome_attribution.json", often + rare)
    folder.image("aro/images/1.jpg", "red")
    assert values(aro.ATTRIBUTION) == {"macro": 100, "items": 100}


def test_word_order(folder, values, fake):
    captions = ["a red bird sits near two green cars.", "Birds"]
    folder.json(
        "flickr30k/dataset_flickr30k.json",
        {
            "images": [
                {"filename": "1.jpg", "split": "test", "sentences": [{"raw": c} for c in captions]},
                {"filename": "2.jpg", "split": "val", "sentences": [{"raw": "a dog"}]},
            ]
        },
    )
    folder.image("flickr30k/flickr30k-images/1.jpg", "red")
    (item,) = aro.FLICKR30K_ORDER.open(folder.path)  # one word has no other order
    assert item.texts[0] == "a red bird sits near two green cars"
    assert 2 <= len(item.texts) <= 5
    for text in item.texts[1:]:
        assert text != item.texts[0] and sorted(text.split()) == sorted(item.texts[0].split())
    # A bag of words cannot tell orders apart, and gets nothing for it.
    assert values(aro.FLICKR30K_ORDER) == {"precision@1": 0}


def test_perturbations_move_what_they_say():
    caption = shortened('A big red bird, "quickly" flies over the small green house!')
    assert caption == "a big red bird, quickly flies over the small green house"
    tokens = caption.replace(",", " ,").split()
    moved, kept, inside, groups = perturbed(caption, "key")
    content = {"big", "red", "bird", "small", "green", "house"}
    for i, (a, b) in enumerate(zip(tokens, moved.split(), strict=True)):
        assert (a in content) == (b in content) and (a in content or a == b), i
    for a, b in zip(tokens, kept.split(), strict=True):
        assert (a in content) == (b in content) and (a not in content or a == b)
    thirds = [tokens[i : i + 3] for i in range(0, len(tokens), 3)]
    again = [inside.split()[i : i + 3] for i in range(0, len(tokens), 3)]
    assert [sorted(g) for g in again] == [sorted(g) for g in thirds]
    for group in thirds:
        assert " ".join(group) in groups
    assert perturbed(caption, "key") == [moved, kept, inside, groups]
    assert perturbed(caption, "other") != [moved, kept, inside, groups]
    assert perturbed("birds", "key") == []


def test_cola_multi(folder, values):
    link = "https://cs-people.bu.edu/array/data/vg_gqa_images/{}.jpg"
    folder.json(
        "cola/data/COLA_multiobjects_matching_benchmark.json",
        [
            [link.format(1), "red", link.format(2), "blue"],
            [link.format(1), "red", link.format(1), "green"],
        ],
    )
    folder.image("cola/images/1.jpg", "red")
    folder.image("cola/images/2.jpg", "blue")
    assert values(cola.MULTI) == {"accuracy": 50}


def test_average_precision_by_hand():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    labels = np.array([True, False, True, False])
    assert cola.average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2)
    assert cola.average_precision(np.ones(4), labels) == pytest.approx(0.5)
    assert cola.average_precision(np.array([np.nan, 1, np.nan, 1]), labels) == pytest.approx(0.5)


def test_cola_single(folder, values, run, fake):
    folder.json(
        "cola/data/COLA_singleobjects_benchmark_GQA.json",
        {
            "labels": ["red", "blue", "green"],
            "data": [
                ["x/1.jpg", {}, [1, 0, 0], [1, 1, 0]],
                ["x/2.jpg", {}, [0, 1, 0], [1, 1, 0]],
                ["x/3.jpg", {}, [0, 1, 0], [0, 0, 1]],  # hard for green alone, which is nowhere
                ["x/9.jpg", {}, [1, 1, 1], [1, 1, 1]],
            ],
        },
    )
    for name, colour in (("1", "red"), ("2", "blue"), ("3", "red")):
        folder.image(f"cola/images/{name}.jpg", colour)
    found = run(cola.SINGLE, fake.Predictor())
    assert found.metrics["map/gqa"].value == 100
    assert len(found.metrics["map/gqa"].sums) == 2
    assert found.left_out == {"missing image": ("gqa/9.jpg",)}
    folder.json("cola/data/COLA_singleobjects_benchmark_GQA.json", {"labels": ["a"], "data": [[1]]})
    with pytest.raises(ValueError, match="does not hold labels"):
        cola.SINGLE.open(folder.path)


def test_whatsup(folder, values, run, fake):
    items = []
    for objects, right in (("mug_plate", 4), ("cup_bowl", 3)):
        one, two = objects.split("_")
        for i, word in enumerate(("left_of", "right_of", "on", "under")):
            name = f"{one}_{word}_{two}.jpeg"
            wrong = ["blue", "green", "blue green"]
            texts = ["red", *wrong] if i < right else ["blue", "red", "green", "blue green"]
            items.append({"image_path": f"data/controlled_images/{name}", "caption_options": texts})
            folder.image(f"whatsup/controlled_images/{name}", "red")
    folder.json("whatsup/controlled_images_dataset.json", items)
    folder.json("whatsup/coco_qa_one_obj.json", [[785, "red", "blue"], [999, "red", "blue"]])
    folder.image("coco/val2017/000000000785.jpg", "red")
    found = values(whatsup.BENCHMARK)
    assert found["controlled_a"] == pytest.approx(100 * 7 / 8)
    assert found["controlled_a/pairs"] == pytest.approx(100 * 3 / 4)
    assert found["controlled_a/sets"] == pytest.approx(50)
    assert found["coco_one"] == 100
    assert found["mean"] == pytest.approx((87.5 + 100) / 2)
    metrics = run(whatsup.BENCHMARK, fake.Predictor()).metrics
    assert (metrics["controlled_a/pairs"].items, metrics["controlled_a/sets"].total) == (4, 2)
    assert metrics["coco_one"].coverage == 0.5
    assert set(values(whatsup.BENCHMARK, fake.Constant()).values()) == {0}


def valse_item(name, caption, foil, votes=2):
    return {"image_file": name, "caption": caption, "foil": foil, "mturk": {"caption": votes}}


def test_valse_takes_valid_items_and_averages_pieces(folder, values, run, fake):
    for file in valse.PIECES:
        folder.json(f"valse/data/{file}.json", {"a": valse_item("nowhere.jpg", "x", "y")})
    folder.json(
        "valse/data/plurals.json",
        {
            "a": valse_item("000000000001.jpg", "red", "blue"),
            "b": valse_item("000000000001.jpg", "blue", "red", votes=1),
        },
    )
    folder.json(
        "valse/data/foil-it.json",
        {
            "a": valse_item("COCO_val2014_000000000001.jpg", "blue", "red"),
            "b": valse_item("COCO_val2014_000000000001.jpg", "red", "blue", votes=3),
            "c": valse_item("COCO_val2014_000000000001.jpg", "green", "red"),
        },
    )
    folder.image("coco/val2017/000000000001.jpg", "red")
    found = values(valse.BENCHMARK)
    assert found == {
        "mean": pytest.approx((100 + 100 / 3) / 2),
        "plurals": 100,
        "foil_it": pytest.approx(100 / 3),
    }
    metric = run(valse.BENCHMARK, fake.Predictor()).metrics["mean"]
    assert (metric.items, metric.total) == (4, 13)


def test_valse_as_published(shared):
    items = valse.BENCHMARK.open(shared / "data")
    assert len(items) == 7702  # the valid ones, as the paper counts them
    there = {piece: 0 for piece in valse.PIECES.values()}
    for item in items:
        there[item.group] += item.images[0] is not None
    assert there["plurals"] > 20 and there["relations"] > 20


def test_coco_names_of_both_years():
    assert coco_names("000000000001.jpg")[1:] == (
        "COCO_val2014_000000000001.jpg",
        "COCO_train2014_000000000001.jpg",
    )
    assert coco_names("v7w_1.jpg") == ("v7w_1.jpg",)


def checklist(*items):
    return [[f"VG_100K/{name}.jpg", {"POS": [pos, "x"], "NEG": [neg]}] for name, pos, neg in items]


def test_vl_checklist_averages_files_aspects_and_kinds(folder, values):
    root = "vl_checklist/data"
    right, wrong = ("1", "red", "blue"), ("1", "blue", "red")
    folder.json(f"{root}/Attribute/vg/color.json", checklist(right, right, wrong, wrong))
    folder.json(f"{root}/Attribute/vaw/color.json", checklist(right))
    folder.json(f"{root}/Attribute/vg/size.json", checklist(wrong))
    folder.json(f"{root}/Relation/vg/spatial.json", checklist(right))
    folder.json(f"{root}/Relation/hake_action.json", checklist(("1", "red", "green")))
    folder.json(f"{root}/Object/Size/vg_size/vg_obj_small.json", checklist(wrong, right))
    folder.image("vl_checklist/vg/VG_100K/1.jpg", "red")
    folder.image("vl_checklist/hake/VG_100K/1.jpg", "red")
    found = values(vl_checklist.BENCHMARK)
    assert found["attribute/color"] == pytest.approx((50 + 100) / 2)
    assert found["attribute"] == pytest.approx((75 + 0) / 2)
    assert (found["relation"], found["object"]) == (100, 50)
    assert found["mean"] == pytest.approx((37.5 + 100 + 50) / 3)
    folder.json(f"{root}/Attribute/vg/size.json", [["1.jpg", {"POS": ["x"]}]])
    with pytest.raises(ValueError, match="size.json has an item that is not"):
        vl_checklist.BENCHMARK.open(folder.path)


@pytest.mark.parametrize(
    "benchmark",
    [
        pairs.WINOGROUND, pairs.COLORSWAP, pairs.BIVLC, pairs.MMVP_VLM, aro.RELATION,
        aro.ATTRIBUTION, aro.COCO_ORDER, cola.MULTI, cola.SINGLE, whatsup.BENCHMARK,
        valse.BENCHMARK, vl_checklist.BENCHMARK,
    ],
    ids=lambda benchmark: benchmark.name,
)  # fmt: skip
def test_an_empty_folder_is_told_what_it_lacks(benchmark, tmp_path):
    with pytest.raises(MissingData, match="expected"):
        benchmark.open(tmp_path)


def test_names_from_annotations_stay_in_their_folder(folder, tmp_path):
    fill_winoground(folder)
    folder.image("secret.png", "red")
    line = '{"id": 0, "image_0": "../../../secret.png", "image_1": "ex_0_img_1", '
    line += '"caption_0": "red", "caption_1": "blue"}'
    folder.text("winoground/data/examples.jsonl", line)
    with pytest.raises(MissingData):
        pairs.WINOGROUND.open(folder.path)
