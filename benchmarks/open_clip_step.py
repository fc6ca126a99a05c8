"""open_clip's training step at a size of `train_step.py`, which starts this in another Python.

    python open_clip_step.py 64x16x128x4x4x16x2x64 32000

Reads seconds from standard input, line by line, takes steps for as long, and answers each line
with the seconds of a step. SigLIP loss, AdamW, random input in memory, float32.
"""

import sys
import time

import open_clip
import torch


def main(size: str, vocab_size: int) -> None:
    """Serves turns until standard input ends."""
    image, patch, width, depth, heads, length, text_depth, batch = map(int, size.split("x"))
    torch.manual_seed(0)
    model = open_clip.model.CustomTextCLIP(
        embed_dim=width,
        vision_cfg={
            "image_size": image,
            "patch_size": patch,
            "width": width,
            "layers": depth,
            "head_width": width // heads,
        },
        text_cfg={
            "context_length": length,
            "vocab_size": vocab_size,
            "width": width,
            "heads": heads,
            "layers": text_depth,
            "no_causal_mask": True,
            "pool_type": "last",
        },
        init_logit_bias=-10.0,
    )
    loss = open_clip.loss.SigLipLoss()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1
    )
    images = torch.randn(batch, 3, image, image)
    texts = torch.randint(0, vocab_size, (batch, length))
    model.train()

    def step():
        optimizer.zero_grad()
        image_emb, text_emb, scale, bias = model(images, texts)
        loss(image_emb, text_emb, scale, bias).backward()
        optimizer.step()

    for line in sys.stdin:
        step()
        calls, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < float(line) or not calls:
            step()
            calls += 1
        print(spent / calls, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
