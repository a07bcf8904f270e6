"""The TCP client of the sockets tutorials: sends a line without its end, prints what comes."""

import sys
from socket import AF_INET, SOCK_STREAM, socket

HOST = sys.argv[1]
PORT = int(sys.argv[2])
BUFSIZE = 1024

client = socket(AF_INET, SOCK_STREAM)
client.connect((HOST, PORT))

while True:
    data = input(">")
    if not data:
        break
    client.send(data.encode())
    data = client.recv(BUFSIZE)
    if not data:
        break
    print(data.decode())

client.close()
