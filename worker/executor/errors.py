"""How a run of the executor fails: in Kaniko's words and with its exit codes, since that is what tells crabpot why."""

from __future__ import annotations

from typing import ClassVar


class ExecutorError(Exception):
    """A failure, with the exit code to end with."""

    prefix: ClassVar[str] = ""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        # One line, as Kaniko's are: by its place in the log it is known.
        super().__init__(self.prefix + "; ".join(line.strip() for line in message.splitlines() if line.strip()))
        self.exit_code = exit_code


class SetupError(ExecutorError):
    """What was given cannot be used; Kaniko prints its usage after these."""


class ContextError(SetupError):
    """The source could not be fetched."""

    prefix = "error resolving source context: "


class DockerfileError(SetupError):
    """There is no such Dockerfile."""

    prefix = "error resolving dockerfile path: "


class PermissionDenied(ExecutorError):
    """The image may not be pushed where it is to go."""

    prefix = "error checking push permissions: "


class BuildError(ExecutorError):
    """The build failed."""

    prefix = "error building image: "


class PushError(ExecutorError):
    """The image was built but could not be brought to its place."""

    prefix = "error pushing image: "
