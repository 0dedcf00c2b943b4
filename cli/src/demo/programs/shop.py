"""A service of the demo's store, by nothing but Python's standard library. It knows of no mesh, and
SIGTERM ends it at once, as it ends any program that does not ask to be told.

    python3 shop.py authentication|catalogue|payment 127.1.0.3:8080 VERSION

authentication: GET /check?user=NAME
catalogue: GET /item?id=N (stands in for nginx where there is none)
payment: POST /pay with {"order": N, "cents": M}
"""

import http.server
import json
import sys
import urllib.parse


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave together, at once.
    wbufsize = -1
    disable_nagle_algorithm = True

    role = version = ""

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        asked = {name: values[0] for name, values in urllib.parse.parse_qs(url.query).items()}
        if url.path == "/health":
            self.answer(200, {"healthy": True})
        elif (self.role, url.path) == ("authentication", "/check"):
            self.answer(200, {"user": asked["user"]})
        elif (self.role, url.path) == ("catalogue", "/item"):
            self.answer(200, {"item": int(asked["id"]), "in_stock": True})
        else:
            self.answer(404, {"error": "no such page"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if (self.role, self.path) == ("payment", "/pay"):
            self.answer(201, {"order": json.loads(body)["order"], "paid": True})
        else:
            self.answer(404, {"error": "no such page"})

    def answer(self, status, value):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("shop-version", f"{self.role}={self.version}")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    Handler.role, address, Handler.version = sys.argv[1:]
    host, port = address.rsplit(":", 1)
    Server((host, int(port)), Handler).serve_forever()


main()
