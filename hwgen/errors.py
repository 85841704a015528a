"""The ways a command fails; `cli` turns them into exit codes."""


class UserError(Exception):
    """The user's input is at fault (exit code 2). The message names the file, node, shape or value."""


class Shortage(UserError):
    """A network does not fit a Config. `field`: of the Config, too small; `factor`: how many times as much would do."""

    def __init__(self, message: str, field: str, factor: float):
        super().__init__(message, field, factor)
        self.field, self.factor = field, factor

    def __str__(self) -> str:
        return self.args[0]


class Mismatch(Exception):
    """A check failed (exit code 1): two things that must agree do not."""
