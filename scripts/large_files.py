"""Fail if a file of the repository is larger than 4 MB: such files belong elsewhere.

`python scripts/large_files.py` checks every tracked file, `python scripts/large_files.py FILE…` the given ones.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT = 4_000_000
ROOT = Path(__file__).resolve().parents[1]
# Ignored without git: what tools and targets leave behind, as in .gitignore.
NOT_OURS = {"build", "dist", "site", "runs", "demo", "data", "__pycache__"}


def tracked(root: Path = ROOT) -> list[Path]:
    """Files that git tracks or would track; without git, all except what tools leave behind.

    Args:
        root: root of the repository or of an unpacked source distribution.

    Returns:
        Absolute paths, sorted.
    """
    # --cached with --others: also new files that have not been added yet.
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=True)
        listed = [root / name for name in done.stdout.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        listed = [
            path
            for path in root.rglob("*")
            if not any(
                part in NOT_OURS or part.startswith(".venv") or part.endswith((".egg-info", "_cache")) or part == ".git"
                for part in path.relative_to(root).parts
            )
        ]
    return sorted(path for path in listed if path.is_file())


def too_large(paths: list[Path], limit: int = LIMIT) -> list[str]:
    """Report each file over the limit.

    Args:
        paths: files to check.
        limit: limit in bytes.

    Returns:
        One line per file.
    """
    return [
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, and a file here may have {limit / 1e6:g} MB"
        for path in paths
        if path.stat().st_size > limit
    ]


if __name__ == "__main__":
    found = too_large([Path(name) for name in sys.argv[1:]] or tracked())
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))
