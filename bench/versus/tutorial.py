"""The tutorial's own loops, one client at a time: PYTHON tutorial.py HOST PORT.

They are as every sockets tutorial has them; only their `print`s are gone, and both run in one
process.
"""

import sys
from socket import AF_INET, SO_REUSEADDR, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET, socket
from threading import Thread
from time import ctime

HOST = sys.argv[1]
PORT = int(sys.argv[2])
BUFSIZE = 1024


def tcp(server: socket) -> None:
    while True:
        client, _ = server.accept()
        while True:
            data = client.recv(BUFSIZE)
            if not data:
                break
            client.send(("[%s]%s" % (ctime(), data.decode())).encode())  # noqa: UP031
        client.close()


def udp(server: socket) -> None:
    while True:
        data, address = server.recvfrom(BUFSIZE)
        server.sendto(("[%s]%s" % (ctime(), data.decode())).encode(), address)  # noqa: UP031


stream = socket(AF_INET, SOCK_STREAM)
stream.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
stream.bind((HOST, PORT))
stream.listen(5)
datagram = socket(AF_INET, SOCK_DGRAM)
datagram.bind((HOST, PORT))
Thread(target=udp, args=(datagram,), daemon=True).start()
print("ready", flush=True)
tcp(stream)
