"""Asking one HTTP server that speaks OpenAI's chat-completions protocol, until it answers.

Four things can go wrong, and each ends differently:
- Busy (429), a fault (5xx), too slow, a broken connection, an answer that is none: tried again,
  after 1, 2, 4 ... seconds or when the server's Retry-After says. RefusedError after the last try.
- The server refuses this request (400 and its like): RefusedError at once; others may pass.
- The server cannot be reached at the last try, refuses us (401, 403) or does not know the address
  or the model (404): ConnectionError, because no other request would fare better.
- An answer that belongs to another request or comes from another model: ConnectionError, because
  then no answer can be trusted.

The waits have no random part, so that a run can be followed. Each try carries an id of its own.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from captioning.config import ServerSettings
from captioning.engines.server_content import Completion, read_completion

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0  # our choice
MAX_WAIT_S = 60.0  # our choice: between two tries
MAX_RETRY_AFTER_S = 600.0  # our choice: a server that asks for more is not waited for
MAX_REASON = 200  # letters of a server's own words; some send the whole request back
_BUSY = (408, 425, 429)


class RefusedError(Exception):
    """The server did not answer one request, and would not if it were asked again.

    Attributes:
        timed_out: it took too long each time.
    """

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


@dataclass(frozen=True)
class ServerIdentity:
    """What a server says it is.

    Attributes:
        kind: "vllm", "sglang", "transformers", or "other".
        version: of the server; None where it does not say.
        model: the name to ask for.
        root: what the server calls the model's origin; None where it does not say.
    """

    kind: str
    version: str | None
    model: str
    root: str | None


class _TryError(Exception):
    """One try failed; another may not."""

    def __init__(
        self, reason: str, *, wait_s: float = 0.0, timed_out: bool = False, is_gone: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.timed_out = timed_out
        self.is_gone = is_gone


class ServerClient:
    """The connections to one server; safe to use from many threads.

    Args:
        settings: url, concurrency, timeout_s, max_tries and api_key_env are used.

    Attributes:
        url: the server's address, without a closing /v1.

    Raises:
        ValueError: the url is none, or holds a secret.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.url = _root_address(settings.url or "")
        self._key = os.environ.get(settings.api_key_env, "")
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(
                settings.timeout_s, connect=min(CONNECT_TIMEOUT_S, settings.timeout_s)
            ),
            limits=httpx2.Limits(
                max_connections=settings.concurrency,
                max_keepalive_connections=settings.concurrency,
            ),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def identify(self, wanted: str | None) -> ServerIdentity:
        """Find out what the server is and which of its models to ask.

        Args:
            wanted: the model's name; None takes the only one that the server lists.

        Raises:
            ConnectionError: no server there, or it refuses us.
            ValueError: it does not have the model, or has several and none was named.
        """
        status, value = self._get("/v1/models")
        # `transformers serve` fails here (500) where the machine has no hub cache.
        models = value.get("data") if status == 200 and isinstance(value, dict) else None
        if models is None and wanted is None:
            raise ValueError(
                f"{self.url}/v1/models answered {status} and no list of models; give the "
                "model's name as the server knows it (server.model), and check that server.url is "
                "the address of a server like vLLM's, such as http://localhost:8000/v1"
            )
        listed = {str(model.get("id")): model for model in models or []}
        kind, version = self._kind({str(model.get("owned_by")) for model in listed.values()})
        if wanted is None and len(listed) != 1:
            raise ValueError(
                f"the server at {self.url} lists {len(listed)} models"
                f"{': ' if listed else ''}{', '.join(sorted(listed)[:10])}; name the one to ask "
                "(server.model), for `transformers serve` as it was named when it was started"
            )
        model = wanted if wanted is not None else next(iter(listed))
        if kind in ("vllm", "sglang") and model not in listed:
            raise ValueError(
                f"the server at {self.url} has no model {model!r}; it has "
                f"{', '.join(sorted(listed)[:10])} (server.model)"
            )
        root = listed.get(model, {}).get("root")
        return ServerIdentity(kind, version, model, root=root if isinstance(root, str) else None)

    def complete(
        self,
        body: Mapping[str, Any],
        *,
        id_field: str | None,
        expects_echo: bool,
        stop: threading.Event,
    ) -> Completion:
        """Ask for one chat completion, as often as it takes.

        Args:
            body: the request; `model` is in it.
            id_field: where in the body the server wants the request's id, beside the header.
            expects_echo: the answer's id must be the request's.
            stop: ends the waiting between tries.

        Raises:
            RefusedError: see the module.
            ConnectionError: see the module; or `stop` was set.
        """
        for number in range(1, self._settings.max_tries + 1):
            request_id = uuid.uuid4().hex
            sent = {**body, id_field: request_id} if id_field else body
            try:
                answer = self._read(self._post(sent, request_id), request_id)
            except _TryError as error:
                trouble = error
                log.info("try %d of %d: %s", number, self._settings.max_tries, trouble)
            else:
                self._check(answer, str(body["model"]), expects_echo=expects_echo)
                return answer
            if number < self._settings.max_tries:
                _pause(stop, max(min(2.0 ** (number - 1), MAX_WAIT_S), trouble.wait_s))
        tries = f"{self._settings.max_tries} tries, the last: {trouble}"
        if trouble.is_gone:
            raise ConnectionError(
                f"the server at {self.url} is gone ({tries}); what was finished is kept: "
                "start it and give the same command again"
            )
        raise RefusedError(tries, timed_out=trouble.timed_out)

    def _post(self, body: Mapping[str, Any], request_id: str) -> httpx2.Response:
        """The server's answer to one try, if it is a 200."""
        try:
            response = self._http.post(
                f"{self.url}/v1/chat/completions",
                json=body,
                headers={"X-Request-Id": request_id},
            )
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _TryError(f"no connection: {error}", is_gone=True) from error
        except httpx2.TimeoutException as error:
            limit = f"{self._settings.timeout_s:g} s"
            raise _TryError(f"no answer within {limit}", timed_out=True) from error
        except httpx2.RequestError as error:
            raise _TryError(f"the connection broke: {_one_line(str(error))}") from error
        status = response.status_code
        if status == 200:
            return response
        words = f"the server answered {status}: {self._words(response)}"
        if status in _BUSY or status >= 500:
            raise _TryError(words, wait_s=_retry_after(response.headers.get("Retry-After")))
        if status in (401, 403):
            raise ConnectionError(self._not_allowed(status))
        if status == 404 or status < 400:
            raise ConnectionError(
                f"{self.url}/v1/chat/completions: {words}; check server.url and the model "
                f"{body['model']!r} (server.model)"
            )
        raise RefusedError(words)

    def _read(self, response: httpx2.Response, request_id: str) -> Completion:
        """The completion in a 200 answer."""
        try:
            return read_completion(response.json(), request_id)
        except ValueError as error:  # no JSON, too
            words = f"{_one_line(str(error))}: {self._words(response)}"
            raise _TryError(f"the server answered no chat completion: {words}") from error

    def _check(self, answer: Completion, model: str, *, expects_echo: bool) -> None:
        """Stop at an answer to another request or from another model."""
        # `transformers serve` adds "@main".
        if answer.model.partition("@")[0] != model.partition("@")[0]:
            raise ConnectionError(
                f"the server at {self.url} was asked for the model {model!r} and answered "
                f"with {answer.model!r}; nothing of this batch was written. Does something "
                "between here and the server choose models?"
            )
        if expects_echo and not answer.is_echo:
            raise ConnectionError(
                f"the server at {self.url} answered a request with the id "
                f"{answer.answer_id[:60]!r}, which is another's; nothing of this batch was "
                "written. Does something between here and the server mix up answers?"
            )

    def _kind(self, owners: set[str]) -> tuple[str, str | None]:
        """The server's kind and version; `owners` is what its list of models says."""
        paths = {"vllm": ("/version",), "sglang": ("/server_info", "/get_server_info")}
        for kind, places in paths.items():
            if kind in owners:
                for place in places:
                    _, value = self._get(place)
                    if isinstance(value, dict) and isinstance(value.get("version"), str):
                        return kind, value["version"]
                return kind, None
        # `transformers serve` does not name itself, but it has a way to load and to drop models.
        _, value = self._get("/openapi.json")
        known = value.get("paths") if isinstance(value, dict) else None
        if isinstance(known, dict) and {"/load_model", "/reset"} <= known.keys():
            return "transformers", None
        return "other", None

    def _get(self, path: str) -> tuple[int, Any]:
        """Status and JSON value (None where there is none) of a page."""
        try:
            try:
                response = self._http.get(self.url + path)
            except httpx2.NetworkError:  # `transformers serve` drops a connection after its fault
                response = self._http.get(self.url + path)
        except httpx2.RequestError as error:
            raise ConnectionError(
                f"no server answers at {self.url} ({_one_line(str(error))}); start it, or correct "
                "its address (server.url)"
            ) from error
        if response.status_code in (401, 403):
            raise ConnectionError(self._not_allowed(response.status_code))
        try:
            return response.status_code, response.json()
        except ValueError:
            return response.status_code, None

    def _not_allowed(self, status: int) -> str:
        name = self._settings.api_key_env
        state = "the key there is not accepted" if self._key else "it is not set"
        return (
            f"the server at {self.url} answered {status} (not allowed); put its API key into "
            f"the environment variable {name} ({state}; server.api_key_env names another)"
        )

    def _words(self, response: httpx2.Response) -> str:
        """What an answer says, in one short line and without our key."""
        text = response.text
        try:
            value = response.json()
        except ValueError:
            value = None
        if isinstance(value, dict):
            error = value.get("error")
            inner = error.get("message") if isinstance(error, dict) else error
            found = inner or value.get("message") or value.get("detail")
            text = str(found) if found else text
        if self._key:
            text = text.replace(self._key, "***")
        return _one_line(text) or "(nothing)"


def _root_address(url: str) -> str:
    """A server's address without the closing /v1; it may be shown and written down."""
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL:
        address = httpx2.URL("")
    if address.userinfo or address.query:
        raise ValueError(
            "server.url holds a user name, a password or a query, which would be written into the "
            "run's manifest; give the plain address, and the key in an environment variable "
            "(server.api_key_env)"
        )
    if address.scheme not in ("http", "https") or not address.host:
        raise ValueError(
            f"server.url is {url!r}; give the address of a server, such as http://localhost:8000/v1"
        )
    path = address.path.rstrip("/").removesuffix("/v1")
    return str(address.copy_with(path=path or "/", fragment=None)).rstrip("/")


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, which holds seconds or a date; 0 for none."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else 0.0


def _one_line(text: str) -> str:
    """A text without line breaks, cut to a readable length."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "..."


def _pause(stop: threading.Event, seconds: float) -> None:
    """Wait between two tries."""
    if stop.wait(seconds):
        raise ConnectionError("another request of the batch has ended the run")
