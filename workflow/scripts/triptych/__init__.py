"""Triptych: staged training of vision-language models, from data to an answer with error bars."""

__version__ = "0.2.0"
