"""The two ways a command fails; `cli` turns them into exit codes."""


class UserError(Exception):
    """The user's input is at fault (exit code 2). The message names the file, node, shape or value."""


class Mismatch(Exception):
    """A check failed (exit code 1): two things that must agree do not."""
