"""The UDP server of the sockets tutorials."""

import sys
from socket import AF_INET, SOCK_DGRAM, socket
from time import ctime

HOST = sys.argv[1]
PORT = int(sys.argv[2])
BUFSIZE = 1024

server = socket(AF_INET, SOCK_DGRAM)
server.bind((HOST, PORT))

while True:
    print("waiting for message ...", flush=True)
    data, address = server.recvfrom(BUFSIZE)
    server.sendto(("[%s]%s" % (ctime(), data.decode())).encode(), address)  # noqa: UP031
    print("... received from and returned to:", address, flush=True)
