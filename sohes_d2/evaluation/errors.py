"""The one error of evaluation: something in a file or in a model's output cannot be scored."""


class EvaluationError(ValueError):
    """What cannot be scored, in which file or output, and what to do about it."""
