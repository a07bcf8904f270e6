"""The TCP server of the sockets tutorials: one client at a time, one `recv` taken for a message."""

import sys
from socket import AF_INET, SOCK_STREAM, socket
from time import ctime

HOST = sys.argv[1]
PORT = int(sys.argv[2])
BUFSIZE = 1024

server = socket(AF_INET, SOCK_STREAM)
server.bind((HOST, PORT))
server.listen(5)

while True:
    print("waiting for connection ...", flush=True)
    client, address = server.accept()
    print("... connected from:", address, flush=True)
    while True:
        data = client.recv(BUFSIZE)
        if not data:
            break
        client.send(("[%s]%s" % (ctime(), data.decode())).encode())  # noqa: UP031
    client.close()
