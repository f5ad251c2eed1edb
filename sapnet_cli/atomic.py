"""Files that are whole or not there."""

from __future__ import annotations

import secrets
from pathlib import Path

TEMPORARY_PREFIX = ".sapnet-"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes beside the target and renames, so that the target is never half a file; its permissions stay.

    Raises:
        OSError: no permission, no space, or the like; nothing is left behind.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
