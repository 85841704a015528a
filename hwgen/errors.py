"""The ways a command fails; `cli` turns them into exit codes."""


class UserError(Exception):
    """The user's input is at fault (exit code 2). The message names the file, node, shape or value."""


class NoRoom(UserError):
    """A network does not fit a memory of the machine. `short`: entries that are missing; 0 if it is only fragmented."""

    def __init__(self, message: str, short: int):
        super().__init__(message)
        self.short = short


class Mismatch(Exception):
    """A check failed (exit code 1): two things that must agree do not."""
