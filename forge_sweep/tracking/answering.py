"""Whether an HTTP address can be, and is, that of an MLflow server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from forge_sweep.errors import InputError, TrackingDown, masked

if TYPE_CHECKING:
    import requests

QUESTION = "/api/2.0/mlflow/experiments/get"
ASKED_S = 10
SAID = 80
"""Characters that are repeated of an answer."""


def check_address(uri: str, variable: str) -> None:
    """Refuse what no server can be at.

    Raises:
        InputError: no host, or a port out of range.
    """
    try:
        parts = urlsplit(uri)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise InputError(f"{variable} = {masked(uri)!r}: {error}", hint="write http://HOST:PORT") from None
    if not host or port == 0 or any(letter.isspace() for letter in uri) or not uri.split(":", 1)[1].startswith("//"):
        raise InputError(f"{variable} = {masked(uri)!r} names no host and port", hint="write http://HOST:PORT")
    if parts.query or parts.fragment:
        hint = "give the address of the server, without the page that the browser shows"
        raise InputError(f"{variable} = {masked(uri)!r} is the address of a page", hint=hint)


def ask(uri: str, variable: str) -> None:
    """Ask the server for its first experiment.

    Raises:
        InputError: it answers, but not as MLflow, or refuses the login.
        TrackingDown: it does not answer, or has a fault that may pass.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            QUESTION,
            "GET",
            max_retries=0,
            timeout=ASKED_S,
            raise_on_status=False,
            params={"experiment_id": "0"},
        )
    except (MlflowException, requests.RequestException, UnicodeError) as error:
        raise _unanswered(uri, variable, error) from error
    code, body = answer.status_code, _json(answer)
    if code in (408, 429) or code >= 500:
        raise TrackingDown(f"{masked(uri)} answers {code}")
    if code in (401, 403, 407):
        raise InputError(
            f"{variable} = {masked(uri)} refuses the login: it answers {code} {answer.reason}",
            hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to one that may "
            "write (a 403 of an MLflow server in a container: its --allowed-hosts)",
        )
    experiment = body.get("experiment")
    known = code == 200 and isinstance(experiment, dict) and "experiment_id" in experiment
    # The first experiment can be gone for good; MLflow says so in words of its own.
    if known or (code in (400, 404) and isinstance(body.get("error_code"), str) and "message" in body):
        return
    moved = f", from {masked(answer.url.partition('?')[0])}" if answer.history else ""
    kind = answer.headers.get("Content-Type", "").partition(";")[0] or "no type"
    said = " ".join(answer.text[:1000].split())[:SAID]
    raise InputError(
        f"{variable} = {masked(uri)} answers, but not as MLflow: {code} {answer.reason}, {kind}{moved}: {said!r}",
        hint=f"set {variable} to the MLflow server itself, with its path where it has one, and behind a login page to "
        "an address for programs",
    )


def _unanswered(uri: str, variable: str, error: Exception) -> InputError | TrackingDown:
    """What is wrong with the address for good, and what may pass."""
    causes: list[BaseException] = [error]
    for each in causes:  # grows: some hold their cause among their arguments only
        inner = (each.__cause__, each.__context__, getattr(each, "reason", None), *each.args)
        causes += [one for one in inner if isinstance(one, BaseException) and one not in causes]
    text = masked(" ".join(str(error).split()))[:300]
    names = {type(each).__name__ for each in causes}
    if names & {"SSLError", "SSLCertVerificationError"} and "EOF" not in text:
        return InputError(
            f"{variable} = {masked(uri)}: no secure connection: {text}",
            hint="write http:// for a server without TLS; for one with its own certificate authority set "
            "MLFLOW_TRACKING_SERVER_CERT_PATH",
        )
    if names & {"BadStatusLine", "LineTooLong", "HeaderParsingError", "TooManyRedirects", "UnknownProtocol"}:
        hint = f"set {variable} to the MLflow server: another service listens there, or it wants https://"
        return InputError(f"{variable} = {masked(uri)} answers, but not as MLflow: {text}", hint=hint)
    if names & {"InvalidURL", "LocationParseError", "LocationValueError", "InvalidHeader", "UnicodeError"}:
        return InputError(f"{variable} = {masked(uri)!r} cannot be asked: {text}", hint="write http://HOST:PORT")
    return TrackingDown(f"{masked(uri)} does not answer: {text}")


def _json(answer: requests.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
