"""A small HTTP server of the demo, by nothing but Python's standard library.

    python3 shop.py 127.0.0.1:18104 catalogue|payment

catalogue: GET /catalogue?item=N (stands in for nginx where there is none).
payment: POST /payment with {"order": N, "cents": M}.
"""

import http.server
import json
import signal
import sys
import urllib.parse


class Shop(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave together, at once.
    wbufsize = -1
    disable_nagle_algorithm = True
    role = ""

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/health":
            self.answer(200, b"ok\n", "text/plain")
        elif url.path == "/catalogue" and self.role == "catalogue":
            item = urllib.parse.parse_qs(url.query)["item"][0]
            self.answer(200, b'{"item":%s,"in_stock":true}\n' % item.encode())
        else:
            self.answer(404, b'{"error":"no such page"}\n')

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/payment" and self.role == "payment":
            order = json.loads(body)["order"]
            self.answer(201, b'{"order":%d,"paid":true}\n' % order)
        else:
            self.answer(404, b'{"error":"no such page"}\n')

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    address, Shop.role = sys.argv[1:]
    host, port = address.rsplit(":", 1)
    server = Server((host, int(port)), Shop)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever()


main()
