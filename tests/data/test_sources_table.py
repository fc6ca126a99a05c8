"""Tables of image paths and captions, in every format."""

import concurrent.futures
import csv
import gzip
import json
import os
import pickle

import numpy as np
import pytest
from absl import logging
from source_files import picture

from ccl_jax.data.records import BadRecord, Source
from ccl_jax.data.sources import TableSource, open_source, rows, source_counts

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = [
    {"image": f"images/{i}.jpg", "caption": f"caption {i}", "phrases": [f"dog {i}", "hat"]}
    for i in range(6)
]


@pytest.fixture
def folder(tmp_path):
    """A folder with images/0.jpg to images/5.jpg, each of other bytes."""
    (tmp_path / "images").mkdir()
    for i in range(6):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(b"image %d" % i)
    return tmp_path


@pytest.fixture
def warnings_logged(monkeypatch):
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: messages.append(text % args))
    return messages


def write_csv(path, values, delimiter=",", **options):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, **options).writerows(values)
    return path


def write_table(path, form):
    """ROWS in one of the formats, as its usual tools write it."""
    if form in ("csv", "tsv"):
        cells = [[row["image"], row["caption"], json.dumps(row["phrases"])] for row in ROWS]
        options = {"delimiter": ",\t"[form == "tsv"]}
        if form == "tsv":
            options |= {"quoting": csv.QUOTE_NONE, "quotechar": None}
        return write_csv(path, [list(ROWS[0]), *cells], **options)
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=4)
    return path


def bad(source, index):
    with pytest.raises(BadRecord) as caught:
        source[index]
    return caught.value.reason


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_records(folder, form):
    source = TableSource(write_table(folder / f"set.{form}", form))
    assert isinstance(source, Source)
    assert (len(source), source.name, source.columns) == (6, "set", tuple(ROWS[0]))
    for i, record in enumerate(source):
        assert (record.sample_id, record.key) == (i, f"images/{i}.jpg")
        assert record.image == b"image %d" % i
        assert (record.captions, record.phrases) == ((f"caption {i}",), ((f"dog {i}", "hat"),))
    for index in (6, -1):
        with pytest.raises(IndexError):
            source[index]
    assert list(pickle.loads(pickle.dumps(source))) == list(source)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_gzip_and_kept_indexes(folder, form):
    plain = write_table(folder / f"set.{form}", form)
    packed = folder / f"set.{form}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for _ in range(2):
        source = TableSource(packed, index_dir=folder / "index")
        assert source.name == "set" and list(source) == list(TableSource(plain))


def test_several_tables_are_laid_end_to_end(folder):
    header, *body = [list(ROWS[0]), *([row["image"], row["caption"], ""] for row in ROWS)]
    for part in range(3):
        write_csv(folder / f"part-{part}.csv", [header, *body[2 * part : 2 * part + 2]])
    source = open_source("table", path=f"{folder}/part-{{0..2}}.csv")
    assert [record.captions[0] for record in source] == [f"caption {i}" for i in range(6)]
    write_csv(folder / "part-1.csv", [["image", "text"], ["images/0.jpg", "a"]])
    with pytest.raises(ValueError, match=r"part-1\.csv has the columns image, text, but .*part-0"):
        TableSource(f"{folder}/part-*.csv")


def test_values_may_hold_delimiters_quotes_and_line_breaks(folder):
    texts = ['a "red" bus, parked', "two\nlines", "two\r\nlines", " spaces ", "é 犬 🐕", "'"]
    path = write_csv(
        folder / "x.csv",
        [["caption", "image"], *([text, f"images/{i}.jpg"] for i, text in enumerate(texts))],
    )
    source = TableSource(path)
    assert [record.captions[0] for record in source] == [text.strip() for text in texts]
    assert [record.image for record in source] == [b"image %d" % i for i in range(6)]


def test_conceptual_captions_has_no_header_and_no_quoting(folder):
    lines = ['" a quote of one side\timages/0.jpg', 'an "inner" one\timages/1.jpg', "\n", "a\tb\tc"]
    (folder / "Train_GCC.tsv").write_text("\n".join(lines))
    source = TableSource(folder / "Train_GCC.tsv", column_names=("caption", "image"))
    assert source.columns == ("caption", "image") and len(source) == 3
    assert [source[i].captions[0] for i in range(2)] == ['" a quote of one side', 'an "inner" one']
    with pytest.raises(BadRecord, match=r"Train_GCC\.tsv:2: invalid row .3 values for 2 columns"):
        source[2]


def test_a_table_of_urls_says_how_to_fetch_them(folder):
    path = folder / "x.tsv"
    path.write_text("a dog\thttp://a.b/c.jpg\na cat\thttps://a.b/d.jpg\n")
    with pytest.raises(ValueError, match="holds URLs: .*ccl_jax.tools.prepare --download"):
        TableSource(path, column_names=("caption", "url"), image="url")


def test_a_stray_quote_costs_its_own_row(folder, warnings_logged):
    lines = ["image,caption"] + [f"images/{i}.jpg,caption {i}" for i in range(6)]
    lines[2] = 'images/1.jpg,"never closed'
    (folder / "x.csv").write_text("\n".join(lines))
    source = TableSource(folder / "x.csv")
    kept = [source[i].captions[0] for i in (0, 2, 3, 4, 5)]
    assert kept == [f"caption {i}" for i in (0, 2, 3, 4, 5)]
    assert len(source) == 6


def test_dialects(folder):
    lines = ["image;caption", "images/0.jpg;'a, b'"]
    (folder / "x.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert TableSource(folder / "x.csv", delimiter=";")[0].captions == ("'a, b'",)
    (folder / "x.txt").write_text('image\tcaption\nimages/0.jpg\t"a\tb"\n')
    source = TableSource(folder / "x.txt", format="tsv", quoting=True)
    assert source[0].captions == ("a\tb",)


def test_columns_can_be_chosen(folder):
    names = ["id", "file", "en", "de", "tags"]
    values = [
        ["k0", "0.jpg", "a dog", "ein Hund", "a dog | a hat"],
        ["k1", "1.jpg", "", "ein Hut", ""],
    ]
    write_csv(folder / "x.csv", [names, *values])
    source = TableSource(
        folder / "x.csv",
        image_dir=folder / "images",
        captions=("en", "de"),
        phrases="tags",
        key="id",
    )
    assert source[0].key == "k0" and source[0].image == b"image 0"
    assert source[0].captions == ("a dog", "ein Hund")
    assert source[0].phrases == (("a dog", "a hat"),) * 2
    assert (source[1].captions, source[1].phrases) == (("ein Hut",), ((),))


def test_lists_in_json_lines(folder):
    fields = [
        {"image": "images/0.jpg", "captions": ["a", " ", "b"], "phrases": [["x"], ["y"], []]},
        {"image": "images/1.jpg", "captions": "c"},
        {"image": "images/2.jpg"},
        {"captions": "d"},
        ["no object"],
        {"image": "images/3.jpg", "captions": [1]},
        {"image": "images/4.jpg", "captions": ["a"], "phrases": "[1"},
    ]
    path = folder / "x.jsonl"
    path.write_text("\n\n".join(map(json.dumps, fields)) + "\n{")
    source = TableSource(path)
    assert (source[0].captions, source[0].phrases) == (("a", "b"), (("x",), ()))
    assert (source[1].captions, source[1].phrases) == (("c",), None)
    reasons = [bad(source, i) for i in range(2, 8)]
    assert reasons == [
        "missing caption",
        "missing image",
        "invalid json",
        "invalid caption",
        "invalid phrases",
        "invalid json",
    ]


@pytest.mark.parametrize("apart", [False, True])
def test_rows_of_one_image_can_be_one_record(folder, apart):
    values = [
        [f"images/{i}.jpg", f"caption {i} {part}", f"p{part}"]
        for i in range(3)
        for part in range(2)
    ]
    values = values[::2] + values[1::2] if apart else values
    header = ["image", "caption", "phrases"]
    write_csv(folder / "x.csv", [header, *values, ["images/4.jpg"], ["", "a", ""], ["", "b", ""]])
    source = TableSource(folder / "x.csv", group_by_image=True)
    assert source_counts(source) == {"records": 6, "files": 1, "rows": 9}
    for i in range(3):
        assert (source[i].key, source[i].image) == (f"images/{i}.jpg", b"image %d" % i)
        assert source[i].captions == (f"caption {i} 0", f"caption {i} 1")
        assert source[i].phrases == (("p0",), ("p1",))
    assert [bad(source, i) for i in range(3, 6)] == [
        "invalid row",
        "missing image",
        "missing image",
    ]
    assert pickle.loads(pickle.dumps(source))[2] == source[2]
    with pytest.raises(IndexError):
        source[6]


def test_images_inside_parquet(folder):
    values = [{"image": {"bytes": b"inside", "path": "0.jpg"}, "caption": "a"}]
    values += [{"image": {"bytes": None, "path": "images/1.jpg"}, "caption": "b"}]
    values += [{"image": {"bytes": b"", "path": None}, "caption": "c"}]
    pq.write_table(pa.Table.from_pylist(values), folder / "x.parquet")
    source = TableSource(folder / "x.parquet")
    assert [(r.key, r.image) for r in (source[0], source[1])] == [
        ("0.jpg", b"inside"),
        ("images/1.jpg", b"image 1"),
    ]
    assert bad(source, 2) == "missing image"
    pq.write_table(pa.table({"image": [b"raw"], "text": ["a"]}), folder / "y.parquet")
    assert TableSource(folder / "y.parquet")[0].image == b"raw"


def test_large_parquet_files_are_mapped_once(folder, monkeypatch):
    path = write_table(folder / "x.parquet", "parquet")
    expected = list(TableSource(path))
    monkeypatch.setattr(rows, "_IN_MEMORY", 0)
    source = TableSource(path, index_dir=folder / "index")
    assert list(source) == expected
    before = pa.total_allocated_bytes()
    again = TableSource(path, index_dir=folder / "index")
    assert list(again) == expected == list(pickle.loads(pickle.dumps(again)))
    assert pa.total_allocated_bytes() - before < 4096
    (copy,) = [entry for entry in (folder / "index").iterdir() if entry.suffix == ".data"]
    assert copy.stat().st_mtime_ns == copy.stat().st_mtime_ns


def test_many_threads_read_one_table(folder):
    source = TableSource(write_table(folder / "x.csv", "csv"))
    order = [(5 * i) % 6 for i in range(300)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.__getitem__, order))
    assert [record.image for record in found] == [b"image %d" % i for i in order]


@pytest.mark.parametrize(
    "value",
    ["../secret.jpg", "/etc/passwd", "images/../../secret.jpg", "..", "images/\0.jpg", "/"],
)
def test_paths_stay_inside_the_folder(folder, value):
    inside = folder / "inside"
    inside.mkdir()
    (folder / "secret.jpg").write_bytes(b"secret")
    fields = [{"image": value, "caption": "a"}]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, fields)))
    source = TableSource(folder / "x.jsonl", image_dir=inside)
    assert bad(source, 0) == "path outside image_dir"


def test_paths_that_lead_back_inside_are_fine(folder):
    values = ["images/../images/0.jpg", "./images/1.jpg", str(folder / "images" / "2.jpg")]
    write_csv(folder / "x.csv", [["image", "caption"], *([value, "a"] for value in values)])
    source = TableSource(folder / "x.csv")
    assert [record.image for record in source] == [b"image 0", b"image 1", b"image 2"]


def test_what_is_no_file_is_a_bad_record(folder):
    os.mkfifo(folder / "pipe.jpg")
    (folder / "empty.jpg").touch()
    with open(folder / "huge.jpg", "wb") as file:
        file.truncate((1 << 30) + 1)
    names = ["absent.jpg", "images", "pipe.jpg", "empty.jpg", "huge.jpg", "", "n" * 300]
    write_csv(folder / "x.csv", [["image", "caption"], *([name, "a"] for name in names)])
    source = TableSource(folder / "x.csv")
    assert [bad(source, i) for i in range(len(names))] == [
        "missing image",
        "missing image",
        "missing image",
        "unreadable image",
        "image too large",
        "missing image",
        "unreadable image",
    ]


def test_fields_that_the_first_row_lacks_are_found(folder):
    fields = [{"image": "images/0.jpg", "text": "a"}, ROWS[1]]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, fields)))
    source = TableSource(folder / "x.jsonl", captions=("caption", "text"))
    assert source[0].phrases is None and source[1].phrases == (("dog 1", "hat"),)


def test_half_of_a_surrogate_pair_can_be_logged(folder):
    (folder / "x.jsonl").write_text('{"image": "\\ud800.jpg", "caption": "a"}')
    with pytest.raises(BadRecord) as caught:
        TableSource(folder / "x.jsonl")[0]
    assert caught.value.key.encode() == b"\\ud800.jpg"
    str(caught.value).encode()


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_invalid_utf8_costs_its_own_row(folder, form):
    data = write_table(folder / "x", form).read_bytes().replace(b"caption 2", b"caf\xe9 2")
    (folder / f"x.{form}").write_bytes(data)
    source = TableSource(folder / f"x.{form}")
    assert bad(source, 2) == "invalid UTF-8"
    assert source[3].captions == ("caption 3",)


def test_a_table_that_shrinks_gives_bad_records(folder):
    path = write_table(folder / "x.csv", "csv")
    source = TableSource(path)
    os.truncate(path, 60)
    assert bad(source, 5) == "unreadable row"


@pytest.mark.parametrize(
    "name, data, options, message",
    [
        ("x.csv", "", {}, "x.csv is empty: its first row should name the columns"),
        ("x.csv", "image,caption\n", {}, "x.csv has no rows"),
        ("x.csv", "image,image\na,b\n", {}, "names a column twice"),
        ("x.csv", "picture,caption\na,b", {}, "none of the columns image, .*image=; it has 'pict"),
        (
            "x.csv",
            "image,about\na,b",
            {},
            "none of the columns captions, .*it has 'image', 'about'",
        ),
        ("x.csv", "image\tcaption\na\tb", {}, r"it has 'image\\tcaption'"),
        ("x.csv", "image,caption\na,b", {"captions": "alt"}, "x.csv has no column 'alt'; it has"),
        ("x.csv", "image,caption\na,b", {"key": "id"}, "no column 'id'"),
        ("x.csv", "image,caption\na,b", {"image_dir": "/no/such"}, "image_dir /no/such does not"),
        ("x.csv", "image,caption\na,b", {"delimiter": "::"}, "one character, got '::'"),
        (
            "x.csv",
            "image,caption\na,b",
            {"format": "xls"},
            "format is one of csv, tsv, jsonl, parq",
        ),
        ("x.dat", "image,caption\na,b", {}, "x.dat ends in none of .csv, .*give format"),
        ("x.jsonl", '[{"image": "a"}]', {}, "x.jsonl is a JSON array: write one object a line"),
        (
            "x.jsonl",
            '{"image": "a"}',
            {"quoting": True},
            "quoting is for CSV and TSV, not for json",
        ),
        ("x.parquet", "image", {}, "x.parquet is not a Parquet file, or cut"),
    ],
)
def test_tables_that_cannot_be_used_say_why(folder, name, data, options, message):
    (folder / name).write_text(data)
    with pytest.raises(ValueError, match=message):
        TableSource(folder / name, **options)


def test_other_encodings_and_cut_parquet_are_named(folder):
    (folder / "x.csv").write_text("image,caption\na,b\n", encoding="utf-16")
    with pytest.raises(ValueError, match="x.csv is UTF-16: write it as UTF-8"):
        TableSource(folder / "x.csv")
    path = write_table(folder / "x.parquet", "parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="x.parquet is not a Parquet file, or cut"):
        TableSource(path)


def test_the_index_is_a_few_bytes_a_row(folder):
    count = 20_000
    lines = ["image,caption"] + [f'images/{i % 6}.jpg,"a caption, {i}"' for i in range(count)]
    (folder / "x.csv").write_text("\n".join(lines))
    source = TableSource(folder / "x.csv")
    held = sum(array.nbytes for span in source._rows._spans for array in span)
    assert held == 12 * count
    rng = np.random.default_rng(0)
    for i in rng.integers(0, count, 20).tolist():
        assert source[i].captions == (f"a caption, {i}",)


def test_real_images_decode(folder):
    from ccl_jax.data.images import decode_image

    (folder / "images" / "0.jpg").write_bytes(picture(7))
    record = TableSource(write_table(folder / "x.csv", "csv"))[0]
    assert decode_image(record.image, record.key).getpixel((0, 0)) == (7, 7, 7)
