"""Logs as lines of JSON, and no secret in them."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from typing import IO

_HIDDEN = "***"
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY", re.IGNORECASE)
_SHORTEST = 8
_SHAPES = (
    # https://user:password@host
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), rf"\1{_HIDDEN}@"),
    # What signs an address.
    (
        re.compile(
            r"([?&](?:X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|"
            r"X-Goog-Signature|Signature|sig|token|access_token|key)=)[^&\s'\"]+",
            re.IGNORECASE,
        ),
        rf"\1{_HIDDEN}",
    ),
    (re.compile(r"(Authorization['\"]?\s*[:=]\s*['\"]?)[^'\"\n]+"), rf"\1{_HIDDEN}"),
    (re.compile(r"(\"private_key\"\s*:\s*\")[^\"]+"), rf"\1{_HIDDEN}"),
)


def redacted(text: str) -> str:
    """Return a text without the secrets of the environment, and without signatures."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(name):
            text = text.replace(value, _HIDDEN)
    for shape, hidden in _SHAPES:
        text = shape.sub(hidden, text)
    return text


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``event`` and what belongs to it.

    What is passed as ``extra={"fields": {...}}`` becomes fields.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "pid": record.process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return redacted(json.dumps(document, default=str))


def log_json(stream: IO[str] | None = None) -> None:
    """Log from INFO upward as JSON, to the standard error if nowhere else."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # Clients of clouds tell every credential that they find.
    for noisy in ("botocore", "boto3", "urllib3", "google", "s3transfer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
