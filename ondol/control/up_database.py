"""Brings the database to the newest schema and says on stdout, as JSON, whether it holds API keys.

`ondol up` runs it as a child process, so that it stays small itself. Exit code 1 and one line on stderr if the
database refuses.
"""

from __future__ import annotations

import json
import sys

from sqlalchemy.exc import SQLAlchemyError

from ondol.contract.errors import OndolError
from ondol.control.administration import has_keys, upgrade_database
from ondol.settings import CommonSettings, load_settings


def main() -> int:
    """Upgrade, then look for keys."""
    url = load_settings(CommonSettings).resolved_database_url()
    try:
        upgrade_database(url)
        sys.stdout.write(json.dumps({"has_keys": has_keys(url)}) + "\n")
    except OndolError as exc:
        return _refused(str(exc))
    except SQLAlchemyError as exc:
        return _refused(str(getattr(exc, "orig", None) or exc))
    return 0


def _refused(reason: str) -> int:
    sys.stderr.write(" ".join(reason.split()) + "\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
