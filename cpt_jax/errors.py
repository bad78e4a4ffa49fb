"""What the user gave is wrong: one clear line, exit status 1."""


class UserError(Exception):
    """Something that the user gave cannot be used.

    The message is one line that names the file, line, key or flag, and says what to do. The programs in launch/ print it
    and exit with status 1; a traceback is left for our own mistakes.
    """
