"""The exception for mistakes of the user. Its message states the problem, the value, and what to do."""


class InputError(ValueError):
    """Input that cannot be used. The command line prints the message without a traceback and exits with code 2."""
