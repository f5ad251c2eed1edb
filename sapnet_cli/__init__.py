"""SAPNet: removes rain from photos. `from sapnet_cli import Derainer`; the command is `sapnet`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sapnet_cli.derainer import Derainer

__version__ = "0.1.0"
__all__ = ["Derainer", "__version__"]


def __getattr__(name: str) -> object:
    """Imports `Derainer`, and NumPy with it, only when it is asked for."""
    if name == "Derainer":
        from sapnet_cli.derainer import Derainer

        return Derainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
