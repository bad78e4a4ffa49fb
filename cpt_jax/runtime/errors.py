"""The exception for mistakes of the user, and the exit statuses of the programs."""

# Exit statuses. 0: success. 1: a flag, config or file of the user is wrong (UserError). 42: SIGTERM
# stopped the run early and everything is saved; the same command resumes it. 70: any other
# exception (EX_SOFTWARE in sysexits.h); a retry may or may not succeed.
EXIT_MISTAKE, EXIT_PREEMPTED, EXIT_CRASHED = 1, 42, 70


class UserError(Exception):
    """A flag, config or file from the user cannot be used.

    The message is one line: it names the file, line, key or flag, and how to fix it. The programs
    in launch/ print the message without a traceback and exit with status 1. Tracebacks are for bugs
    in this package.
    """
