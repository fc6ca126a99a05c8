"""Noun phrases by an instruction-tuned language model: prompt, batched answers, parsing.

A model may invent, reword or explain; only phrases that stand in the caption word for word are
used, so that every extractor gives runs of the caption's own words.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence

from ccl_jax.data.concepts.grammar import join, tokenize

# Answers to a batch of prompts; a prompt is a list of chat messages.
Generate = Callable[[Sequence[list[dict[str, str]]]], Sequence[str]]

_TASK = (
    "Copy the noun phrases out of the image caption, word for word: article, number, adjectives "
    "and noun of each thing, person, animal or place that can be seen. Split joined things. Leave "
    "out pronouns, what follows the noun, and talk about the picture itself. Answer with a JSON "
    "list of strings and nothing else."
)
_EXAMPLES = (
    (
        "A photo of a girl in a red dress holding her umbrella and a bag in the background.",
        ["a girl", "a red dress", "her umbrella", "a bag"],
    ),
    (
        "Two brown dogs that are running through tall, wet grass near a group of people",
        ["two brown dogs", "tall, wet grass", "people"],
    ),
)
_MAX_WORDS = 400  # of a caption; no phrases are asked for beyond them
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_QUOTED = re.compile(r'"([^"\n]*)"')
_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s*")


def prompt(caption: str) -> list[dict[str, str]]:
    """The chat that asks for the phrases of a caption: the task, two examples, the caption."""
    messages = []
    for example, phrases in _EXAMPLES:
        messages.append({"role": "user", "content": example})
        messages.append({"role": "assistant", "content": json.dumps(phrases)})
    messages.append({"role": "user", "content": " ".join(caption.split()[:_MAX_WORDS])})
    # The task opens the first message, because some chat templates know no system role.
    messages[0]["content"] = f"{_TASK}\n\n{messages[0]['content']}"
    return messages


def parse(answer: str) -> list[str]:
    """The phrases of an answer: of a JSON list, even if cut, else lines or what commas part.

    >>> parse('Sure! ["a dog", "a red ball"]')
    ['a dog', 'a red ball']
    >>> parse("1. a dog\\n2. a red ball")
    ['a dog', 'a red ball']
    """
    answer = _THOUGHT.sub("", answer).strip()
    start, end = answer.find("["), answer.rfind("]")
    if 0 <= start < end:
        try:
            return [item for item in json.loads(answer[start : end + 1]) if isinstance(item, str)]
        except (ValueError, RecursionError):
            pass  # not JSON after all, or cut
    if start >= 0:
        return _QUOTED.findall(answer, start)
    lines = [line for line in answer.splitlines() if line.strip() and not line.startswith("```")]
    if len(lines) == 1:
        lines = lines[0].split(",")
    stripped = (_ITEM.sub("", line).strip(" \t\"'.,;") for line in lines)
    return [phrase for phrase in stripped if phrase]


def locate(tokens: Sequence[str], phrases: Sequence[str]) -> Iterator[tuple[int, int] | str]:
    """Finds phrases among the tokens of their caption.

    Yields:
      (start, end) of each phrase, in the order of the caption for a phrase that occurs more
      than once; the phrase itself where it is no run of the caption's words.
    """
    places = [i for i, token in enumerate(tokens) if token[-1].isalnum()]
    words = [tokens[i] for i in places]
    following: dict[str, int] = {}  # where to look for the next occurrence of a phrase
    for phrase in phrases:
        wanted = [token for token in tokenize(phrase) if token[-1].isalnum()]
        key = join(wanted)
        start = _find(words, wanted, following.get(key, 0)) if wanted else None
        if start is None:
            yield phrase
            continue
        following[key] = start + len(wanted)
        yield places[start], places[start + len(wanted) - 1] + 1


def _find(words, wanted, first):
    """Where `wanted` begins in `words` at or after `first`, else before it, else None."""
    last = len(words) - len(wanted) + 1
    starts = (*range(first, last), *range(min(first, last)))
    return next((i for i in starts if words[i : i + len(wanted)] == wanted), None)


def transformers_generator(
    model: str, *, batch_size: int = 16, max_new_tokens: int = 192, device: str | None = None
) -> Generate:
    """Greedy answers of a Hugging Face instruct model, run by PyTorch.

    Args:
      model: name on the hub, or a folder, of a causal language model with a chat template.
      batch_size: prompts generated together.
      max_new_tokens: longest answer; a cut one is used as far as it parses.
      device: of PyTorch; None for the first GPU where there is one, else the CPU.

    Raises:
      ValueError: if PyTorch or the model is missing, or the model has no chat template.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ValueError(
            "the extractor 'llm' needs PyTorch and transformers: pip install ccl_jax[llm]"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        network = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"cannot load the language model {model!r} ({reason}): give the name of a causal "
            "instruct model on the hub, or its folder"
        ) from error
    if not tokenizer.chat_template:
        raise ValueError(f"{model!r} has no chat template: give a model tuned on instructions")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device).eval()

    def generate(prompts: Sequence[list[dict[str, str]]]) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(prompts), batch_size):
            inputs = tokenizer.apply_chat_template(
                list(prompts[start : start + batch_size]),
                add_generation_prompt=True,
                padding=True,
                return_tensors="pt",
                return_dict=True,
            ).to(device)
            with torch.inference_mode():
                output = network.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            new = output[:, inputs["input_ids"].shape[1] :]
            answers += tokenizer.batch_decode(new, skip_special_tokens=True)
        return answers

    return generate
