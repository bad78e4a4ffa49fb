"""How a program ends that cannot go on."""

# 0 done; 1 something that the user gave is wrong; 42 stopped early by SIGTERM with everything
# saved: start again to go on; 70 anything else (sysexits.h: an internal error), which another try
# may or may not survive.
EXIT_MISTAKE, EXIT_PREEMPTED, EXIT_CRASHED = 1, 42, 70


class UserError(Exception):
    """Something that the user gave cannot be used.

    The message is one line that names the file, line, key or flag, and says what to do. The
    programs in launch/ print it and exit with status 1; a traceback is left for our own mistakes.
    """
