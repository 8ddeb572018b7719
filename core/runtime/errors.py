"""The two ways a run can end badly, told apart because their exit statuses differ."""


class InputError(Exception):
    """What the user gave cannot be used: a bad argument, a missing or a broken file. Exit status 2.

    The message is one line and names the file and, where there is one, the row.
    """


class RunError(Exception):
    """The input was fine and the run failed all the same: a loss that is not finite, for one. Exit status 1."""


def one_line(text: object) -> str:
    """The text with line breaks and other control characters spelt out, as file names may have them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
