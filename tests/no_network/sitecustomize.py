"""Lets Python and its kernels reach this machine alone. Active where this folder is on PYTHONPATH."""

import sys


def _refuse_other_machines(event, args):
    if event in ("socket.connect", "socket.sendto"):
        host = args[1][0] if isinstance(args[1], tuple) else None  # else a socket of the file system
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host and host not in ("localhost", "0.0.0.0", "::", "::1") and not host.startswith("127."):
        raise ConnectionRefusedError(f"no network here: {event} to {host!r}")


sys.addaudithook(_refuse_other_machines)
