"""The two expected kinds of failure, with different exit statuses."""

import re


class InputError(Exception):
    """Unusable input: a bad argument, a missing or broken file. Exit status 2.

    The message is one line and names the file and, if there is one, the row.
    """


class RunError(Exception):
    """A failure although the input was usable, such as a loss that is not finite. Exit status 1."""


def one_line(text: object) -> str:
    """The text with line breaks and other control characters escaped, since file names may contain them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def first_line(error: Exception) -> str:
    """First line of an error message, without torch's source location."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[[^]]*\] ", "", lines[0]).rstrip(".: ")
