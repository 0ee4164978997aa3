"""The one exception for a user's mistake: its message says what was wrong, with the value, and what to do."""


class InputError(ValueError):
    """Input that cannot be used. The command line prints the message without a traceback and exits with code 2."""
