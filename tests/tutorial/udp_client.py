"""The UDP client of the sockets tutorials."""

import sys
from socket import AF_INET, SOCK_DGRAM, socket

HOST = sys.argv[1]
PORT = int(sys.argv[2])
BUFSIZE = 1024

client = socket(AF_INET, SOCK_DGRAM)

while True:
    data = input(">")
    if not data:
        break
    client.sendto(data.encode(), (HOST, PORT))
    data, address = client.recvfrom(BUFSIZE)
    if not data:
        break
    print(data.decode())

client.close()
