"""Precision and recall of the phrase extractors on 200 captions read by hand, and their speed.

    python benchmarks/concepts.py --data ../shared/data [--extractors embedded,spacy]

`--mistakes` lists what went wrong in the development half; nothing lists it for the other.
`--options '{"llm": {"model": "NAME"}}'` gives an extractor its options.
"""

import json
import time
from collections.abc import Sequence

from absl import app, flags
from concepts_scores import HALVES, head, mistakes, read_annotations, score

from ccl_jax.data.concepts import EXTRACTORS, Extractor, open_extractor

_DATA = flags.DEFINE_string("data", "../shared/data", "Folder of the tars.")
_EXTRACTORS = flags.DEFINE_list("extractors", sorted(EXTRACTORS), "Names to measure.")
_OPTIONS = flags.DEFINE_string("options", "{}", "JSON: name of an extractor -> its options.")
_MISTAKES = flags.DEFINE_bool("mistakes", False, "Whether to list those of the first half.")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Time to measure the speed; 0 for not at all.")


def captions_per_second(extractor: Extractor, captions: Sequence[str], seconds: float) -> float:
    """Speed on one core, the lexicon loaded."""
    extractor(captions[:1])
    done, start = 0, time.process_time()
    while (taken := time.process_time() - start) < seconds:
        extractor(captions)
        done += len(captions)
    return done / taken


def main(_):
    """Prints a line for each extractor and half."""
    halves = {half: read_annotations(half, _DATA.value) for half in HALVES}
    options = json.loads(_OPTIONS.value)
    print(
        f"{'extractor':10} {'half':12} {'precision':>9} {'recall':>7} {'of heads':>15} captions/s"
    )
    for name in _EXTRACTORS.value:
        try:
            extractor = open_extractor(name, **options.get(name, {}))
        except ValueError as error:
            print(f"{name:10} not measured: {error}")
            continue
        for half, examples in halves.items():
            captions = [example.caption for example in examples]
            found = [extraction.kept for extraction in extractor(captions)]
            exact, lenient = score(examples, found), score(examples, found, head)
            line = f"{name:10} {half:12} {exact['precision']:8.1f}% {exact['recall']:6.1f}% "
            line += f"{lenient['precision']:6.1f}% {lenient['recall']:6.1f}%"
            if half == HALVES[0] and _SECONDS.value:
                line += f" {captions_per_second(extractor, captions, _SECONDS.value):10,.0f}"
            print(line)
            if half == HALVES[0] and _MISTAKES.value:
                print("\n".join(mistakes(examples, found)))


if __name__ == "__main__":
    app.run(main)
