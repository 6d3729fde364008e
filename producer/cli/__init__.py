"""The `crabpot` command. Its help starts at once: a command's module is imported when the command is run, not before.

`watch`, `doctor`, `registry`, `retention` and `gc` live with the worker. They are named here as text, as an entry point names its target: this table is the
wiring of the console script, and nothing of the producer imports the worker.
"""

from __future__ import annotations

import importlib
import sys

import click

COMMANDS = {
    "init": ("producer.cli.init:init", "Write a Dockerfile on a distroless base for a language."),
    "submit": ("producer.cli.submit:submit", "Queue a build."),
    "list": ("producer.cli.builds:list_builds", "List builds, newest first."),
    "show": ("producer.cli.builds:show", "Show a build: its state, why it waits or failed, its attempts."),
    "logs": ("producer.cli.builds:logs", "Print a build's log; -f follows it."),
    "wait": ("producer.cli.builds:wait", "Wait until a build has ended; exits 0 if it succeeded."),
    "cancel": ("producer.cli.builds:cancel", "Cancel a build."),
    "retry": ("producer.cli.builds:retry", "Queue a new build of an ended build's request."),
    "limits": ("producer.cli.limits:limits", "Show or set how many builds may run at once."),
    "pause": ("producer.cli.limits:pause", "Start no more builds: of all, a project or a capacity class."),
    "resume": ("producer.cli.limits:resume", "End a pause."),
    "promote": ("producer.cli.promote:promote", "Give an image further tags, also in other repositories, without building it again."),
    "registry": ("worker.registry_command:command", "Look into registries; copy, remove and pin images."),
    "retention": ("worker.retention_command:command", "Plan which old images go; approve and undo plans."),
    "gc": ("worker.collect.command:command", "Collect registries' garbage: plan, run, status."),
    "doctor": ("worker.doctor:command", "Check Redis, cluster, rights, registries and clocks."),
    "serve": ("producer.cli.serve:serve", "Serve webhooks and the REST API."),
    "watch": ("worker.watcher:command", "Watch the cluster and keep builds moving."),
    "schema": ("producer.cli.schema:schema", "Print the JSON Schema of a build request."),
}
EPILOG = """\b
Exit codes:
  0    well; for wait and submit --wait: the build succeeded
  1    the build failed, or doctor found a fault
  2    the command line or the request is wrong
  3    there is no such build, project or image
  4    the server, Redis or registry does not answer; try again
  5    the build was cancelled or superseded, or it was too late to cancel it; a later push has the tag; the image is in use; a file is in the way
  124  wait: the time was up
"""


class _Lazy(click.Group):
    """A group that knows its commands' names and help, and imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, told) for name, (_, told) in COMMANDS.items()])


@click.group(cls=_Lazy, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crabpot")
def crabpot() -> None:
    """A build queue for container images.

    Speaks to the server at CRABPOT_URL, with CRABPOT_API_TOKEN; where that is not set, to the Redis at CRABPOT_REDIS_URL.
    """


def main() -> None:
    """The console script: crabpot's own errors are one line and an exit code, never a traceback."""
    try:
        crabpot(prog_name="crabpot", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        from ledger.errors import CrabpotError

        if not isinstance(error, CrabpotError):
            raise
        from producer.cli.output import exit_code_of

        click.echo(f"crabpot: {error}", err=True)
        sys.exit(exit_code_of(error))
