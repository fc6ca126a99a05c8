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


def pooled(tokens, queries, sharpness=1.0, scores="dot", values="raw", token_where=None):
    out = np.zeros((len(tokens), len(queries)))
    for m, patches in enumerate(tokens):
        if token_where is not None:
            patches = patches[token_where[m]]
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


def answers(text_image, real, words, images, duplicates):
    """Positive pairs and pairs that count, (images, texts), by going through all of them."""
    texts = len(text_image)
    positive, where = (np.zeros((images, texts), bool) for _ in range(2))
    for i in range(images):
        for n in range(texts):
            own = real[n] and text_image[n] == i
            says_it_too = any(
                real[k] and text_image[k] == i and words[k] == words[n] for k in range(texts)
            )
            positive[i, n] = own or (duplicates == "positive" and says_it_too and real[n])
            where[i, n] = real[n] and not (duplicates == "ignore" and says_it_too and not own)
    return positive, where


def smooth_softmax(logits, positive, where, smoothing):
    """Mean over rows with an answer, mean over columns with an answer, and their mean."""
    means = []
    for x, right, counts in ((logits, positive, where), (logits.T, positive.T, where.T)):
        losses = []
        for i in range(len(x)):
            choices = np.flatnonzero(counts[i])
            if not right[i].any():
                continue
            top = max(x[i, choices])
            lse = np.log(sum(np.exp(x[i, j] - top) for j in choices)) + top
            cross_entropy = 0.0
            for j in choices:
                target = smoothing / len(choices)
                if right[i, j]:
                    target += (1 - smoothing) / right[i].sum()
                cross_entropy -= target * (x[i, j] - lse)
            losses.append(cross_entropy)
        means.append(np.mean(losses))
    return np.mean(means)


def smooth_sigmoid(logits, positive, where, smoothing, divisor):
    total = 0.0
    for i, n in np.argwhere(where):
        target = 1 - smoothing / 2 if positive[i, n] else smoothing / 2
        x = logits[i, n]
        total -= target * log_sigmoid(x) + (1 - target) * log_sigmoid(-x)
    return total / divisor
