"""The ways a command fails; `cli` turns them into exit codes."""

import errno
import os
from dataclasses import dataclass

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """The user's input is at fault (exit code 2). The message names the file, node, shape or value."""


class Shortage(UserError):
    """A network does not fit a Config. `field`: of the Config, too small; `factor`: how many times as much would do;
    `short`: entries of a memory that are missing, 0 if it is only fragmented or something else that is too small.
    """

    def __init__(self, message: str, field: str, factor: float, short: int = 0):
        super().__init__(message, field, factor, short)
        self.field, self.factor, self.short = field, factor, short

    def __str__(self) -> str:
        return str(self.args[0])


class Mismatch(Exception):
    """A check failed (exit code 1): two things that must agree do not."""


def full_disk(said: str) -> str:
    """What a tool, which may only have said it in its log, tells of a full disk; "" where it tells of none."""
    return next((words for number in FULL if (words := os.strerror(number)) in said), "")


class Terminated(SystemExit):
    """The command was told to end (SIGTERM); a SystemExit of a library's own means something else."""


@dataclass(frozen=True)
class Finding:
    """One ONNX node that hwgen cannot build: its name and operator, the level of the compiler that says no, why, what helps."""

    node: str
    op: str
    level: str
    reason: str
    hint: str = ""

    @property
    def why(self) -> str:
        """The reason, and in brackets what helps."""
        return self.reason + (f" ({self.hint})" if self.hint else "")

    def __str__(self) -> str:
        return f"{self.op} node {self.node!r}: {self.why}"
