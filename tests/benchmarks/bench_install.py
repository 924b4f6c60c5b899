"""Sizes of the extras: what each installs on this machine, from the files of the environment.

`make bench-install`. Compiled modules (`__pycache__`) and our own package are not counted.
"""

from __future__ import annotations

from tests.support.extras import EXTRAS, installed, size_bytes


def main() -> None:
    """Print one row an extra."""
    print("| extra | packages | MB on disk |\n| --- | --- | --- |")
    for extra in EXTRAS:
        packages = installed(extra)
        size = sum(map(size_bytes, packages))
        print(f"| `{extra}` | {len(packages)} | {size / 1e6:,.0f} |")


if __name__ == "__main__":
    main()
