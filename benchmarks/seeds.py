"""The quickstart's two rows over several seeds, as a Markdown table.

    for s in 0 1 2; do
      python -m ccl_jax.main --config configs/quickstart.py --config.seed=$s --workdir DIR/$s
    done
    python benchmarks/seeds.py DIR/0 DIR/1 DIR/2

Mean over the seeds, with the lowest and highest; the difference is taken seed by seed.
"""

import json
import pathlib
import statistics

from absl import app

METRICS = {
    "attribute swap": "compositionality/swap_attribute",
    "attribute swap, unseen pairs": "compositionality_unseen/swap_attribute",
    "attribute replaced": "compositionality/replace_attribute",
    "object replaced": "compositionality/replace_object",
    "attribute added": "compositionality/add_attribute",
    "order of a relation swapped": "compositionality/swap_relation",
    "retrieval, image to text R@1": "retrieval/image_to_text_recall@1",
    "retrieval, text to image R@1": "retrieval/text_to_image_recall@1",
    "zero-shot, 64 classes": "zero_shot/top1",
    "pointing": "segmentation/pointing",
    "segmentation mIoU": "segmentation/miou",
}


def _cell(values: list[float], sign: str = "") -> str:
    mean = statistics.mean(values)
    return f"{mean:{sign}.1f} ({min(values):{sign}.1f} to {max(values):{sign}.1f})"


def main(argv):
    """Reads the workdirs named on the command line and prints the table."""
    folders = [pathlib.Path(name) for name in argv[1:]]
    if not folders:
        raise app.UsageError("name the workdirs of the quickstart, one a seed")
    runs = {
        name: [json.loads((folder / name / "results.json").read_text()) for folder in folders]
        for name in ("siglip", "ccl")
    }
    print("| percent | SigLIP | SigLIP + CCL | difference |\n|---|---|---|---|")
    for title, metric in METRICS.items():
        siglip, ccl = ([run["metrics"][metric] for run in runs[name]] for name in runs)
        gain = [right - left for left, right in zip(siglip, ccl, strict=True)]
        print(f"| {title} | {_cell(siglip)} | {_cell(ccl)} | {_cell(gain, '+')} |")
    for folder, siglip, ccl in zip(folders, runs["siglip"], runs["ccl"], strict=True):
        left, right = 1000 * siglip["seconds_per_step"], 1000 * ccl["seconds_per_step"]
        print(f"{folder}: {left:.0f} ms and {right:.0f} ms a step, {right / left:.2f} x")


if __name__ == "__main__":
    app.run(main)
