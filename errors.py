"""The exceptions that end a script with one line: bad input, and a stop that was asked for."""


class InputError(Exception):  # noqa: N818 - what a user sees says "error"
    """Bad input. The message is one line that says what is wrong, where, and what to do about it.

    Scripts print it as `error: ...` and exit with status 1; anything else that is raised is a bug of Temper's
    own and keeps its traceback.
    """


class Stopped(Exception):  # noqa: N818 - no error
    """The run was asked to stop (SIGTERM) and has saved itself. Scripts print the message and exit with status 0."""
