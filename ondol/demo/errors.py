"""What stops the demo."""

from __future__ import annotations

from ondol.contract.errors import OndolError


class DemoFailed(OndolError):
    """A part of the demo did not do what it should; the message says which, and where to look."""

    code = "demo_failed"
