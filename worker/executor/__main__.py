"""One run: fetch the source, build, push, leave the digest."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from worker.executor.buildah import Buildah
from worker.executor.context import fetch_context, find_dockerfile
from worker.executor.errors import ExecutorError, PushError, SetupError
from worker.executor.flags import Options, parse_flags
from worker.executor.places import Places, run_folder
from worker.executor.tarball import name_images

_USAGE = "Usage:\n  executor --context=CONTEXT --destination=IMAGE [Kaniko's flags]\n\nSee worker/executor/flags.py for those that are honoured.\n"


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Build as the arguments say; the exit code is Kaniko's."""
    state = Path(environment.get("CRABPOT_EXECUTOR_STATE") or Path(tempfile.gettempdir()) / "crabpot-executor")
    try:
        options = parse_flags(arguments)
        with run_folder(state) as folder:
            _execute(options, Places.read(environment), folder, environment)
    except SetupError as error:
        print(f"Error: {error}\n{_USAGE}", flush=True)
        return error.exit_code
    except ExecutorError as error:
        print(error, flush=True)
        return error.exit_code
    return 0


def _execute(options: Options, places: Places, folder: Path, environment: Mapping[str, str]) -> None:
    fetched = folder / "context"
    fetched.mkdir()
    context = fetch_context(options, places, fetched, environment)
    dockerfile = find_dockerfile(options, places, context)
    buildah = Buildah(folder, options, places, environment)
    if options.push and options.check_permission:
        from worker.executor.permission import check_permissions  # lazily: an HTTP client takes its time to load

        check_permissions(options, places, buildah.authfile)
    image = buildah.build(context, dockerfile)
    if options.tar:
        _save(buildah, image, options, folder, places.find(options.tar))
    if options.push:
        digests = [buildah.push(image, destination) for destination in options.destinations]
        digest = next(filter(None, digests), "") or buildah.digest(image)
    else:
        print("Skipping push to container registry due to --no-push flag", flush=True)
        digest = buildah.digest(image)
    print(f"Built {digest}", flush=True)
    if options.digest_file:  # last of all: Kaniko writes it before it pushes, which is worth nothing without exit 0
        path = places.find(options.digest_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(digest)


def _save(buildah: Buildah, image: str, options: Options, folder: Path, target: Path) -> None:
    names = options.destinations or ("docker.io/unset-repo/unset-image-name:latest",)
    draft = target.with_name(f".{target.name}.{folder.name}")
    try:
        buildah.save(image, folder / "image.tar", names[0])
        name_images(folder / "image.tar", draft, names)
        draft.replace(target)
    except OSError as error:
        raise PushError(f"writing tarball to file failed: {error}") from None
    finally:
        draft.unlink(missing_ok=True)


def _stop(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: what follows is tidying up
    raise SystemExit(128 + number)


if __name__ == "__main__":
    for told in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told, _stop)
    sys.exit(main(sys.argv[1:], os.environ))
