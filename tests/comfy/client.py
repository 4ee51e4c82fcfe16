"""A small client of ComfyUI's HTTP API and event stream."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

END_EVENTS = ("execution_success", "execution_error", "execution_interrupted")


class PromptRejected(RuntimeError):
    """The server refused a prompt before running it."""

    def __init__(self, status: int, answer: dict):
        self.status = status
        self.error = answer.get("error", {})
        self.node_errors = answer.get("node_errors", {})
        super().__init__(f"HTTP {status}: {json.dumps(answer, indent=1)}")

    def messages(self) -> list[str]:
        """Return what is wrong, one line for each error of each node."""
        return [
            f"{error['type']}: {error['message']}: {error['details']}"
            for node in self.node_errors.values()
            for error in node["errors"]
        ]


class PromptFailed(RuntimeError):
    """A prompt ended with an error or was interrupted."""

    def __init__(self, run: Run):
        self.run = run
        super().__init__(run.error or "interrupted")


@dataclass
class Run:
    """One finished prompt: its history entry and, if recorded, its events."""

    prompt_id: str
    history: dict
    events: list[tuple[str, dict]] = field(default_factory=list)
    previews: int = 0

    @property
    def outputs(self) -> dict[str, dict]:
        """Node id -> what the node put into ``ui``."""
        return self.history["outputs"]

    @property
    def ok(self) -> bool:
        """Whether the prompt ran to its end."""
        return bool(self.history["status"]["completed"])

    @property
    def interrupted(self) -> bool:
        """Whether someone stopped the prompt."""
        return any(name == "execution_interrupted" for name, _ in self._messages())

    @property
    def error(self) -> str | None:
        """The node type, exception and traceback of a failed prompt."""
        for name, data in self._messages():
            if name == "execution_error":
                traceback = "".join(data["traceback"])
                head = f"{data['node_type']} #{data['node_id']}: {data['exception_type']}"
                return f"{head}: {data['exception_message'].strip()}\n{traceback}"
        return None

    def events_named(self, name: str) -> list[dict]:
        """Return the data of all recorded events of one name."""
        return [data for event, data in self.events if event == name]

    def _messages(self) -> list[list]:
        return self.history["status"]["messages"]


class ComfyClient:
    """Talks to one server, as one client.

    A prompt is always sent with a client id: without one, ComfyUI leaves out cached outputs.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex

    def request(self, path: str, data: bytes | None = None, kind: str = "application/json"):
        """Return (HTTP status, body) of a GET, or of a POST if there is data."""
        headers = {"Content-Type": kind} if data is not None else {}
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path: str):
        """Return the JSON that lies at a path."""
        status, body = self.request(path)
        if status != 200:
            raise RuntimeError(f"GET {path}: HTTP {status}: {body[:500]!r}")
        return json.loads(body)

    def post(self, path: str, payload: object = None):
        """Send JSON; return (HTTP status, answer), the answer as JSON if it is."""
        status, body = self.request(path, json.dumps({} if payload is None else payload).encode())
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body.decode(errors="replace")

    def object_info(self, node: str | None = None) -> dict:
        """Return the definition of one node, or of all by name."""
        return self.get(f"/object_info/{node}")[node] if node else self.get("/object_info")

    def submit(self, prompt: dict, **more: object) -> str:
        """Queue an API-format prompt and return its id.

        Raises:
            PromptRejected: The server found the prompt invalid.
        """
        payload = {"prompt": prompt, "client_id": self.client_id, **more}
        status, answer = self.post("/prompt", payload)
        if status != 200:
            raise PromptRejected(status, answer if isinstance(answer, dict) else {"error": answer})
        if answer["node_errors"]:  # some output nodes are valid, others not
            raise PromptRejected(status, answer)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 120) -> Run:
        """Return a queued prompt when it has ended, however it ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                return Run(prompt_id, entry)
            time.sleep(0.05)
        raise TimeoutError(f"prompt {prompt_id} has not ended in {seconds:g} s")

    def run(self, prompt: dict, seconds: float = 120, check: bool = True) -> Run:
        """Queue a prompt and wait for its end.

        Raises:
            PromptFailed: It ended badly and ``check`` is true.
        """
        return _checked(self.wait(self.submit(prompt), seconds), check)

    def record(
        self,
        prompt: dict,
        seconds: float = 120,
        check: bool = True,
        on_event: Callable[[str, dict], None] | None = None,
    ) -> Run:
        """Do what ``run`` does and collect the events that the server sends meanwhile.

        ``on_event`` sees every event as it comes, and may for example interrupt.
        """
        with ThreadPoolExecutor(1) as thread:  # a live browser occupies this thread's event loop
            listening = thread.submit(asyncio.run, self._listen(prompt, seconds, on_event))
            events, previews, prompt_id = listening.result()
        run = self.wait(prompt_id, 10)
        run.events, run.previews = events, previews
        return _checked(run, check)

    async def _listen(self, prompt, seconds, on_event):
        import aiohttp  # comes with ComfyUI; the library's tests are collected without it

        events, previews = [], 0
        end = time.monotonic() + seconds
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={self.client_id}", max_msg_size=0) as ws,
        ):
            flags = {"supports_preview_metadata": True}
            await ws.send_json({"type": "feature_flags", "data": flags})
            prompt_id = await asyncio.to_thread(self.submit, prompt)
            while True:
                message = await asyncio.wait_for(ws.receive(), max(end - time.monotonic(), 0.01))
                if message.type == aiohttp.WSMsgType.BINARY:
                    previews += 1
                if message.type != aiohttp.WSMsgType.TEXT:
                    if ws.closed:
                        raise ConnectionError(f"the server closed the event stream: {message}")
                    continue
                event = json.loads(message.data)
                name, data = event["type"], event["data"]
                events.append((name, data))
                if on_event:
                    await asyncio.to_thread(on_event, name, data)
                if name in END_EVENTS and data.get("prompt_id") == prompt_id:
                    return events, previews, prompt_id

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Stop the running prompt, or only if it is the given one."""
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def empty_queue(self, seconds: float = 60) -> None:
        """Take away what waits, stop what runs, and wait until nothing does."""
        self.post("/queue", {"clear": True})
        end = time.monotonic() + seconds
        while self.get("/queue")["queue_running"]:
            if time.monotonic() > end:
                raise TimeoutError(f"the queue is not empty after {seconds:g} s")
            self.interrupt()
            time.sleep(0.2)

    def view(self, file: dict) -> bytes:
        """Return the bytes of a file that a node lists in its ``ui`` outputs."""
        query = urllib.parse.urlencode(
            {key: file.get(key, "") for key in ("filename", "subfolder", "type")}
        )
        status, body = self.request(f"/view?{query}")
        if status != 200:
            raise RuntimeError(f"GET /view?{query}: HTTP {status}")
        return body

    def images(self, run: Run) -> list[bytes]:
        """Return the bytes of every picture a finished prompt shows, in node order."""
        return [
            self.view(file) for shown in run.outputs.values() for file in shown.get("images", [])
        ]

    def upload(self, path: Path, name: str | None = None) -> str:
        """Put a file into the server's input folder; return its name there."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; '
            f'filename="{name or path.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        status, answer = self.request("/upload/image", body, kind)
        if status != 200:
            raise RuntimeError(f"upload of {path}: HTTP {status}: {answer[:500]!r}")
        return json.loads(answer)["name"]


def _checked(run: Run, check: bool) -> Run:
    if check and not run.ok:
        raise PromptFailed(run)
    return run
