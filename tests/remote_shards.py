"""A server of files that cuts, corrupts and fails on a script: `python -m tests.remote_shards FOLDER`.

It prints its port. A file SCRIPT beside the folder holds lines `NAME FAULT`, each taken by one GET of NAME: `reset`
(closes in mid-body), `500`, `short` (says and sends fewer bytes), `flip` (one bit is wrong), `missing`, `wait` (sends
nothing until a file GO lies there, too).
"""

from __future__ import annotations

import http.server
import sys
import time
from pathlib import Path

SCRIPT, SEEN, GO = "SCRIPT", "SEEN", "GO"


class Handler(http.server.SimpleHTTPRequestHandler):
    folder: Path

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer(b"", self._content())

    def do_GET(self) -> None:  # noqa: N802
        content, fault = self._content(), self._fault()
        with (self.folder.parent / SEEN).open("a") as seen:
            seen.write(f"{self.path.lstrip('/')}\n")
        while fault == "wait" and not (self.folder.parent / GO).exists():
            time.sleep(0.02)
        if fault == "500":
            self.send_error(500)
        elif fault == "missing" or content is None:
            self.send_error(404)
        elif fault == "short":
            self._answer(content[: len(content) // 2], content[: len(content) // 2])
        elif fault == "flip":
            wrong = bytearray(content)
            wrong[len(wrong) // 2] ^= 4
            self._answer(bytes(wrong), content)
        elif fault == "reset":
            self._answer(content[: len(content) // 2], content)
            self.wfile.flush()
            self.connection.close()
        else:
            self._answer(content, content)

    def _answer(self, body: bytes, content: bytes | None) -> None:
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def _content(self) -> bytes | None:
        path = self.folder / self.path.lstrip("/")
        return path.read_bytes() if path.is_file() else None

    def _fault(self) -> str:
        script = self.folder.parent / SCRIPT
        lines = script.read_text().splitlines() if script.exists() else []
        for number, line in enumerate(lines):
            name, fault = line.split()
            if name == self.path.lstrip("/"):
                script.write_text("".join(f"{other}\n" for other in lines[:number] + lines[number + 1 :]))
                return fault
        return ""

    def log_message(self, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    Handler.folder = Path(sys.argv[1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
