"""Evaluation: the same problems for every model, every answer kept, every number with its error bar.

`backends.base` has the nouns and the protocol a back-end keeps, `runner` the loop, `metrics` the numbers;
docs/evaluation.md has every definition.
"""
