"""Who made an answer, when, where and from which inputs: the audit block of a report."""

from __future__ import annotations

import getpass
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def audit(command: str, digest: Mapping[str, str]) -> dict[str, Any]:
    """The audit block as JSON values.

    Args:
        command: reproduces the answer.
        digest: of each input, by name.

    Returns:
        Command, time (UTC), user, host, and the digests.

    Example:
        >>> found = audit("funcexplain run a.toml", {"prices": "0a1b"})
        >>> list(found)
        ['command', 'time', 'user', 'host', 'digest of the prices']
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = "unknown"
    return {
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "user": user,
        "host": platform.node() or "unknown",
        **{f"digest of the {name}": value for name, value in digest.items()},
    }
