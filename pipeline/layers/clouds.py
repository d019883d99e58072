"""How object stores and cloud queues are reached: endpoints, time limits, repetition.

Everything that talks to a cloud calls `reach_clouds` first. An answer that says no for
now (500, 503, 429, a lost connection, a time-out) is asked for again by the cloud's own
client. What that client does not see, a body that ends too early or has another checksum,
is asked for again by `persistently`. Both wait longer each time, and give up.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.errors import StorageUnavailableError

TRIES = 5
"""How often something is asked for by `persistently`."""

PATIENCE_S = 30.0
"""How long `persistently` goes on asking; the try in hand is not broken off [s]."""

_CONNECT_S = 10
_READ_S = 60
_REQUESTS = 6
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 20.0

_T = TypeVar("_T")
_lock = threading.Lock()
_reached: list[str] = []


def reach_clouds() -> None:
    """Settle how clouds are reached, once in a process.

    Endpoints are those of the environment, as the clouds' own clients read them:
    ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL_SQS`` or ``AWS_ENDPOINT_URL`` for both,
    ``STORAGE_EMULATOR_HOST`` for ``gs://``. ``EM_REQUEST_TIMEOUT_S`` is how long an
    answer may take [s].
    """
    with _lock:
        if _reached:
            return
        if "AWS_ACCESS_KEY_ID" in os.environ:
            # CloudFiles wants it beside the key, be it empty.
            os.environ.setdefault("AWS_SESSION_TOKEN", "")
        _settle_aws()
        _settle_cloudfiles()
        _reached.append("clouds")


def request_timeout_s() -> float:
    """Return how long an answer may take [s]."""
    return float(os.environ.get("EM_REQUEST_TIMEOUT_S", _READ_S))


def _settle_aws() -> None:
    import boto3  # type: ignore[import-untyped]
    import botocore.session  # type: ignore[import-untyped]
    from botocore.config import Config  # type: ignore[import-untyped]

    settings: dict[str, Any] = {
        "connect_timeout": _CONNECT_S,
        "read_timeout": request_timeout_s(),
        "retries": {"mode": "standard", "total_max_attempts": _REQUESTS},
        "max_pool_connections": 32,
        "user_agent_extra": "em-pipeline",
    }
    if "AWS_ENDPOINT_URL_S3" in os.environ or "AWS_ENDPOINT_URL" in os.environ:
        # Other servers than Amazon's know buckets by path, and not every checksum.
        settings["s3"] = {"addressing_style": "path"}
        settings["request_checksum_calculation"] = "when_required"
    session = botocore.session.get_session()
    session.set_default_client_config(Config(**settings))
    session.register("before-parse", _refuse_torn)
    boto3.setup_default_session(botocore_session=session)


def _refuse_torn(
    response_dict: dict[str, Any], operation_model: Any, **rest: object
) -> None:
    """Keep Amazon's client from taking an answer that broke off for a whole one.

    It compares no lengths but those of objects, and reads half an answer in JSON as one
    that says nothing: a queue that is not whole would seem empty.
    """
    from botocore.exceptions import (  # type: ignore[import-untyped]
        IncompleteReadError,
    )

    body, headers = response_dict["body"], response_dict["headers"]
    if not isinstance(body, bytes) or operation_model.http.get("method") == "HEAD":
        return
    expected = int(headers.get("content-length", len(body)))
    is_torn = len(body) < expected
    if not is_torn and body and "json" in headers.get("content-type", ""):
        try:
            json.loads(body)
        except ValueError:
            is_torn = True
    if is_torn:
        raise IncompleteReadError(actual_bytes=len(body), expected_bytes=expected)


def _settle_cloudfiles() -> None:
    """Keep CloudFiles from asking seven times for what it cannot get."""
    import tenacity
    from cloudfiles import interfaces

    once = tenacity.stop_after_attempt(1)
    # Functions within its methods are decorated anew at each call.
    interfaces.retry = tenacity.retry(reraise=True, stop=once)
    for kind in (
        interfaces.S3Interface,
        interfaces.GoogleCloudStorageInterface,
        interfaces.HttpInterface,
    ):
        for function in vars(kind).values():
            if (policy := getattr(function, "retry", None)) is not None:
                policy.stop = once


def persistently(action: Callable[[], _T]) -> _T:
    """Do what may fail for now; again after a pause, up to `TRIES` times and `PATIENCE_S`.

    Parameters
    ----------
    action : callable
        May be done any number of times.

    Raises
    ------
    StorageUnavailableError
        If it failed each time.
    """
    began = time.monotonic()
    for tried in range(1, TRIES + 1):
        try:
            return action()
        except StorageUnavailableError:
            if tried == TRIES or time.monotonic() - began > PATIENCE_S:
                raise
            time.sleep(pause_s(tried))
    raise AssertionError("every path above returns or raises")


def pause_s(tried: int) -> float:
    """Return how long to wait after so many tries [s]: longer each time, and at random.

    At random, lest a thousand workers that were refused together ask together again.
    """
    longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 3.0 ** (tried - 1))
    return longest * random.uniform(0.5, 1.0)
