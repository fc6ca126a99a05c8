"""Contrastive vision-language training in JAX: CLIP, SigLIP, CCL and PACL."""

__version__ = "0.1.0"
