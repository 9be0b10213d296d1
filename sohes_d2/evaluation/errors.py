"""The one error of evaluation: something in a file or in a model's output cannot be scored."""

from ..errors import InputError


class EvaluationError(InputError):
    """What cannot be scored, in which file or output, and what to do about it."""
