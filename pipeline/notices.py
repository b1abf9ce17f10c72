"""Notices to wherever the user wants: one library (Apprise), many services, and plain webhooks.

The addresses hold secrets. They come from the environment alone, and nothing of them is ever
logged: what a service said is thrown away, and a failure names only the kind of service. Notices
are sent by a process of its own, so that no service can hold a sensor longer than the settings say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

from assets.deployment.automation import Notices

LONGEST = 3000  # characters of a notice
EXTRA = "pip install -c constraints.txt -e '.[notify]'"


def notify(
    settings: Notices, event: str, title: str, body: str, warn: Callable[[str], None]
) -> bool:
    """Tell somebody, if the settings ask for this event and the environment names a service.

    Never raises for what a service does; `warn` takes a sentence where a notice was not delivered.

    Returns:
        Whether it was delivered to every service.
    """
    urls = os.environ.get(settings.urls_from, "").split()
    if not urls or event not in settings.events:
        return False
    message = json.dumps({"urls": urls, "title": title, "body": body[:LONGEST]})
    command = [sys.executable, "-m", "pipeline.notices"]
    try:
        sent = subprocess.run(
            command, input=message, capture_output=True, text=True, timeout=settings.timeout_s
        )
    except subprocess.TimeoutExpired:
        warn(f"notice {title!r} was not delivered within {settings.timeout_s:g} s")
        return False
    if sent.returncode:
        # Only what this module printed itself: tracebacks and services may hold an address.
        said = sent.stdout.strip().splitlines()
        warn(f"notice {title!r} was not delivered: {said[-1] if said else 'its process died'}")
    return sent.returncode == 0


def main() -> int:
    """Deliver one notice, given as JSON on the standard input; prints who was not reached."""
    try:
        import apprise
    except ImportError:
        print(f"the package apprise is missing: {EXTRA}")
        return 1
    message = json.load(sys.stdin)
    missed = []
    for url in message["urls"]:
        service = apprise.Apprise.instantiate(url)
        kind = url.partition("://")[0]
        if service is None:  # then not even its beginning is known to be no secret
            missed.append("an address that Apprise cannot read")
        elif not service.notify(title=message["title"], body=message["body"], body_format="text"):
            missed.append(kind)
    if missed:
        print(f"{len(missed)} of {len(message['urls'])} services: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
