"""The one exception for what a user can mend: `dermjax` prints it as one line and exits with code 2."""


class UserError(Exception):
    """Anything the user can mend: one line that names the file, key or tensor and says what to do."""
