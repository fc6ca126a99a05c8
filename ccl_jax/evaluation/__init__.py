"""Evaluators: what a model is measured with, ignorant of how it was trained."""
