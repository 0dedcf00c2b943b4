"""Answers every request with its own path, HTTP/1.1 with connections that stay open.

On SIGTERM it ends at once, as Python does by itself: what is in flight then is lost.
Arguments: address, port.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A head and a body in two segments would wait for an acknowledgement between them.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self):
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server((sys.argv[1], int(sys.argv[2])), Echo).serve_forever()
