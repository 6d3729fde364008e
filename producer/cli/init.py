"""`crabpot init`: a Dockerfile on a distroless base for a language, with its .dockerignore, to begin with and to change.

The templates are files of the package (`producer/templates/`); which base each has and why stands in them, and in docs/dockerfiles.md.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import click

from ledger.errors import FileInTheWay, Problem, RequestInvalid

NEEDS = {
    "go": ("go.mod",),
    "python": ("requirements.txt", "main.py"),
    "java": ("pom.xml", "src"),
    "node": ("package.json", "package-lock.json", "server.js"),
    "c": ("Makefile",),
}
"""What each template's instructions take from the folder unless they are changed."""
_NAMES = {"Dockerfile": "Dockerfile", ".dockerignore": "dockerignore"}
"""A file in the folder -> in the template."""


@click.command()
@click.argument("language", type=click.Choice(list(NEEDS)))
@click.option("--force", is_flag=True, help="Write over files that are there.")
@click.option("--directory", type=click.Path(path_type=Path), default=Path(), help="The folder to write to; by default this one.")
def init(language: str, force: bool, directory: Path) -> None:
    """Write a Dockerfile and a .dockerignore for a LANGUAGE, on a distroless base."""
    folder = _folder(directory)
    texts = template(language)
    if force:
        _replace(folder, texts)
    else:
        _create(folder, texts)
    for name in texts:
        click.echo(str(folder / name))
    missing = [name for name in NEEDS[language] if not (folder / name).exists()]
    if missing:
        there = "it is" if len(missing) == 1 else "they are"
        click.echo(f"the Dockerfile uses {', '.join(missing)}, and {there} not there yet", err=True)


def template(language: str) -> dict[str, str]:
    """The files of a language's template, by their name in the folder."""
    source = files("producer") / "templates" / language
    return {name: (source / stored).read_text() for name, stored in _NAMES.items()}


def _folder(directory: Path) -> Path:
    if not directory.is_dir():
        wrong = "must be a folder that exists" + ("; this is a file" if directory.exists() else f"; create it with `mkdir -p {directory}`")
        raise RequestInvalid([Problem("--directory", str(directory), wrong)])
    return directory


def _create(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files that are not there: all or none. FileInTheWay."""
    present = [name for name in texts if os.path.lexists(folder / name)]
    if present:
        raise FileInTheWay(f"{' and '.join(str(folder / name) for name in present)} would be written over; say --force if they may be")
    written: list[Path] = []
    try:
        for name, text in texts.items():
            path = folder / name
            with path.open("x") as file:  # never over one that has come in between
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise FileInTheWay(f"{error.filename} would be written over; say --force if it may be") from None
        raise _unwritable(folder, error) from None


def _replace(folder: Path, texts: Mapping[str, str]) -> None:
    """Put files in the place of whatever has their names; each is there whole at any moment."""
    try:
        for name, text in texts.items():
            handle, temporary = tempfile.mkstemp(prefix=".crabpot-", dir=folder)
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(text)
                Path(temporary).chmod(0o644)
                Path(temporary).replace(folder / name)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> RequestInvalid:
    return RequestInvalid([Problem("--directory", str(folder), f"must be a folder that you may write to ({error.strerror})")])
