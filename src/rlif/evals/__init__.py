"""Evaluation: the same problems for every model, every answer kept, every number with its error bar.

`records` has the nouns and the protocol a back-end keeps, `run` the loop, `sheet` the numbers; docs/evaluation.md has
every definition.
"""
