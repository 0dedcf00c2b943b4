"""A DNS server that answers from a file, which may change while it runs.

A line of the file: NAME TYPE TTL DATA, as in `web.test A 1 127.0.0.2`. A line `FAIL` makes it answer
SERVFAIL to everything.
"""

import sys
import time

from dnslib import QTYPE, RCODE, RR
from dnslib.server import BaseResolver, DNSServer


class FromFile(BaseResolver):
    def resolve(self, request, handler):
        reply = request.reply()
        name, kind = str(request.q.qname).rstrip(".").lower(), QTYPE[request.q.qtype]
        known = False
        with open(sys.argv[2]) as zone:
            for line in zone:
                if line.strip() == "FAIL":
                    reply.header.rcode = RCODE.SERVFAIL
                    return reply
                owner, of, ttl, data = line.split(maxsplit=3)
                known |= owner == name
                if (owner, of) == (name, kind):
                    for record in RR.fromZone(f"{owner}. {ttl} IN {of} {data}"):
                        reply.add_answer(record)
        if not known:
            reply.header.rcode = RCODE.NXDOMAIN
        return reply


for tcp in (False, True):
    DNSServer(FromFile(), address=sys.argv[1], port=53, tcp=tcp).start_thread()
print("serving", flush=True)
while True:
    time.sleep(3600)
