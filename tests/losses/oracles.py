"""The losses as loops in NumPy and float64, written from their formulas."""

import numpy as np


def log_sigmoid(x):
    return -np.log1p(np.exp(-abs(x))) + min(x, 0.0)


def clip(image, text, scale):
    b = len(image)
    total = 0.0
    for i in range(b):
        row = [scale * (image[i] @ text[j]) for j in range(b)]
        column = [scale * (image[j] @ text[i]) for j in range(b)]
        for line in (row, column):
            top = max(line)
            total += np.log(sum(np.exp(x - top) for x in line)) + top - line[i]
    return total / (2 * b)


def siglip(image, text, scale, bias):
    b = len(image)
    total = 0.0
    for i in range(b):
        for j in range(b):
            y = 1 if i == j else -1
            total -= log_sigmoid(y * (scale * (image[i] @ text[j]) + bias))
    return total / b


def pooled(tokens, queries, sharpness=1.0, scores="dot", values="raw"):
    out = np.zeros((len(tokens), len(queries)))
    for m, patches in enumerate(tokens):
        for n, query in enumerate(queries):
            summed = [v / np.linalg.norm(v) if values == "normalized" else v for v in patches]
            seen = [v / np.linalg.norm(v) if scores == "cosine" else v for v in summed]
            weights = np.exp([sharpness * (v @ query) for v in seen])
            weights /= weights.sum()
            p = sum(w * v for w, v in zip(weights, summed, strict=True))
            out[m, n] = p @ query / np.linalg.norm(p)
    return out


def concept(similarity, phrase_image, scale, bias, words, duplicates):
    """NPC or XAC from the similarities; `words[n]` tells phrases apart."""
    images, phrases = similarity.shape
    total, real = 0.0, 0
    for n in range(phrases):
        if phrase_image[n] < 0:
            continue
        real += 1
        for i in range(images):
            own = phrase_image[n] == i
            says_it_too = any(phrase_image[k] == i and words[k] == words[n] for k in range(phrases))
            if duplicates == "ignore" and says_it_too and not own:
                continue
            positive = own or (duplicates == "positive" and says_it_too)
            y = 1 if positive else -1
            total -= log_sigmoid(y * (scale * similarity[i, n] + bias))
    return total / max(real, 1)


def pacl(tokens, text, scale, sharpness, scores, values):
    phi = pooled(tokens, text, sharpness, scores, values)
    # CLIP's loss on logits: an image whose cosine with caption j is phi[i, j].
    return clip(phi, np.eye(len(text)), scale)
