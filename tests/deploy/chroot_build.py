"""Builds our Dockerfile without a container engine: each stage is a folder, each RUN a chroot.

Knows the instructions that the Dockerfile uses and refuses the rest. What differs from an engine:
there are no layers; RUN sees this machine's resolver, certificates and pip configuration, as an
engine's builder sees the proxy and the secrets that it is given.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_LENT = ("/etc/resolv.conf", _CERTIFICATES, "/etc/pip.conf")


@dataclass
class Image:
    """A stage: its root folder and what ENV, USER, WORKDIR and ENTRYPOINT said."""

    root: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        }
    )
    user: str = "0:0"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)

    def start(
        self, command: Sequence[str], *, read_only: bool = False, **extra: str
    ) -> subprocess.Popen[bytes]:
        """Run a command in the image as its user; in a mount namespace of its own.

        With `read_only` its root is mounted so, with fresh folders at /tmp and /run/unlatent.
        """
        root = shlex.quote(str(self.root))
        steps = [
            "set -eu",
            f"mount --rbind {root} {root}",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
        ]
        if read_only:
            steps += [
                f"mkdir -p {root}/run/unlatent",
                f"mount -o remount,bind,ro {root}",
                *(
                    f"mount -t tmpfs -o mode=1777 tmpfs {root}/{folder}"
                    for folder in ("tmp", "run/unlatent")
                ),
            ]
        for lent in () if read_only else _LENT:
            # The package that brings the certificates cannot replace a file that is mounted.
            awaited = lent == _CERTIFICATES and not (self.root / lent.lstrip("/")).exists()
            if Path(lent).exists() and not awaited:
                steps += [
                    f"mkdir -p {root}{Path(lent).parent}",
                    f"touch {root}{lent}",
                    f"mount --bind {lent} {root}{lent}",
                ]
        setting = [f"{name}={value}" for name, value in {**self.environment, **extra}.items()]
        inner = shlex.join(
            ["chroot", f"--userspec={self.user}", "--groups=", str(self.root), "/usr/bin/env", "-i",
             f"--chdir={self.folder}", *setting, *command]
        )  # fmt: skip
        steps.append(f"exec {inner}")
        return subprocess.Popen(["unshare", "--mount", "sh", "-c", "\n".join(steps)])

    def run(self, command: Sequence[str], **extra: str) -> None:
        """Run a command to its end; raises when it fails."""
        code = self.start(command, **extra).wait()
        assert code == 0, f"{shlex.join(command)} exited with {code}"


def build(  # noqa: C901 - one branch an instruction
    dockerfile: Path, context: Path, *, base: Path, work: Path
) -> dict[str, Image]:
    """Run the Dockerfile on a base folder; return its stages by name."""
    images: dict[str, Image] = {}
    arguments: dict[str, str] = {}
    image = Image(base)
    for line in _instructions(dockerfile.read_text()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            source, _, name = rest.split()
            origin = images.get(source, Image(base))
            image = replace(origin, root=work / name, environment=dict(origin.environment))
            _duplicate(origin.root, image.root)
            images[name] = image
        elif word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value.strip('"')
        elif word == "RUN":
            command = re.sub(r"--mount=\S+\s+", "", rest)
            image.run(["sh", "-c", command], **arguments)
        elif word == "COPY":
            _copy(rest.split(), images, image, context)
        elif word == "ENV":
            for setting in shlex.split(rest):
                name, _, value = setting.partition("=")
                image.environment[name] = value.replace("$PATH", image.environment["PATH"])
        elif word == "WORKDIR":
            image.folder = rest
            (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            image.user = rest
        elif word == "ENTRYPOINT":
            image.entrypoint = json.loads(rest)
        else:
            assert word in {"CMD", "STOPSIGNAL"}, f"this builder does not know {word}"
    return images


def _instructions(text: str) -> Iterator[str]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    yield from (line.strip() for line in joined.splitlines() if line.strip())


def _copy(words: list[str], images: dict[str, Image], image: Image, context: Path) -> None:
    origin = context
    if words[0].startswith("--from="):
        origin = images[words.pop(0).removeprefix("--from=")].root
    *sources, target = words
    into = image.root / image.folder.lstrip("/") / target.lstrip("/")
    if target.startswith("/"):
        into = image.root / target.lstrip("/")
    for source in sources:
        path = origin / source.lstrip("/")
        if path.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
            if origin is context:
                shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True, ignore=ignore)
            else:
                _duplicate(path, into)
        else:
            destination = into / path.name if target.endswith("/") else into
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, destination)


def _duplicate(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)
