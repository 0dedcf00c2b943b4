"""The frontend of the demo's store, by nothing but Python's standard library. It calls the other three
services at the addresses it is given, in plain HTTP and without ever trying twice; SIGTERM ends it at
once.

    python3 frontend.py 127.1.0.2:8080 VERSION AUTHENTICATION CATALOGUE PAYMENT

GET /item?id=N&user=NAME: authentication, then catalogue.
POST /order?user=NAME with {"order": N, "cents": M}: authentication, then payment.
"""

import http.server
import json
import sys
import urllib.error
import urllib.parse
import urllib.request

TIMEOUT_SECONDS = 30


class Failed(Exception):
    """One of the other services gave no good answer."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave together, at once.
    wbufsize = -1
    disable_nagle_algorithm = True

    version = authentication = catalogue = payment = ""

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/health":
            self.answer(200, {"healthy": True})
        elif url.path == "/item":
            self.shop(url, lambda asked: self.call(f"{self.catalogue}/item?id={int(asked['id'])}"))
        else:
            self.answer(404, {"error": "no such page"})

    def do_POST(self):
        order = self.rfile.read(int(self.headers["content-length"]))
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/order":
            self.shop(url, lambda _: self.call(f"{self.payment}/pay", order))
        else:
            self.answer(404, {"error": "no such page"})

    def shop(self, url, do):
        """Asks who it is, does what is asked for, and answers with both."""
        self.versions = [f"frontend={self.version}"]
        asked = {name: values[0] for name, values in urllib.parse.parse_qs(url.query).items()}
        try:
            user = self.call(f"{self.authentication}/check?user={urllib.parse.quote(asked['user'])}")
            done = do(asked)
        except Failed as failed:
            self.answer(502, {"error": str(failed)})
        else:
            self.answer(200, user | done)

    def call(self, url, body=None):
        kind = {"content-type": "application/json"} if body else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, kind), timeout=TIMEOUT_SECONDS) as answer:
                self.versions.append(answer.headers["shop-version"])
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Failed(f"{url}: {error.code} {error.read().decode(errors='replace').strip()}") from error
        except (OSError, ValueError) as error:
            raise Failed(f"{url}: {error!r}") from error

    def answer(self, status, value):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("shop-version", ", ".join(getattr(self, "versions", [])))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    address, Handler.version, *called = sys.argv[1:]
    Handler.authentication, Handler.catalogue, Handler.payment = (f"http://{of}" for of in called)
    # Not through whatever proxy the environment names.
    urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler({})))
    host, port = address.rsplit(":", 1)
    Server((host, int(port)), Handler).serve_forever()


main()
