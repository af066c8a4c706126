"""Numbers made of answers and of numbers: estimators, comparisons, what the text of an answer tells."""
