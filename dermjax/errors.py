"""The two exceptions that end a command without a traceback: what a user can mend, and a stop that was asked for."""

# the exit code of a run that lost one of its processes, or was told to stop on Kubernetes, EX_TEMPFAIL of sysexits.h:
# the same command goes on
AGAIN = 75


class UserError(Exception):
    """Anything the user can mend: one line that names the file, key or tensor and says what to do; exit code 2."""


class Stopped(Exception):
    """The run was told to stop and has saved what it has: one line; exit code 0, on Kubernetes 75, and the same command
    goes on."""
