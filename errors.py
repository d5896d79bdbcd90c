"""The one exception for what a user can put right: bad input, named, with its remedy."""


class InputError(ValueError):
    """Bad input. The message is one line that says what is wrong, where, and what to do about it.

    Scripts print it as `error: ...` and exit with status 1; anything else that is raised is a bug of Temper's
    own and keeps its traceback.
    """
