// Go's own net package, a goroutine for each client: go_net HOST PORT.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"
)

const (
	longest = 65_536  // bytes of a line, without its end
	piece   = 262_144 // bytes of replies that are made at once
	receive = 65_536
	width   = len("[" + time.ANSIC + "]")
	linger  = 2 * time.Second // for the peer to close, after a line that was too long
)

type stamp struct {
	second int64
	prefix []byte
}

var latest atomic.Pointer[stamp]

// prefix for messages that have come just now; rendered once a second.
func prefix() []byte {
	now := time.Now()
	current := latest.Load()
	if current == nil || current.second != now.Unix() {
		current = &stamp{now.Unix(), []byte(now.Format("[" + time.ANSIC + "]"))}
		latest.Store(current)
	}
	return current.prefix
}

func echo(conn *net.TCPConn) {
	defer conn.Close()
	input := make([]byte, longest+receive)
	var replies []byte
	held := 0 // bytes of the start of a line
	for {
		n, err := conn.Read(input[held:])
		stamp, whole := prefix(), input[:held+n]
		// What was held has no line's end.
		for from := held; ; from = 0 {
			end := bytes.IndexByte(whole[from:], '\n')
			if end < 0 || from+end > longest {
				break
			}
			line := whole[:from+end+1]
			whole = whole[len(line):]
			if len(replies)+width+len(line) > piece {
				if _, err := conn.Write(replies); err != nil {
					return
				}
				replies = replies[:0]
			}
			replies = append(append(replies, stamp...), line...)
		}
		if err == io.EOF && len(whole) > 0 {
			replies = append(append(replies, stamp...), whole...)
		}
		if len(replies) > 0 {
			if _, err := conn.Write(replies); err != nil {
				return
			}
			replies = replies[:0]
		}
		if err != nil {
			return
		}
		if len(whole) > longest {
			discard(conn)
			return
		}
		held = copy(input, whole)
	}
}

// discard what still comes: closing with unread input resets the connection, and that may
// overtake replies.
func discard(conn *net.TCPConn) {
	conn.CloseWrite()
	conn.SetReadDeadline(time.Now().Add(linger))
	io.Copy(io.Discard, conn)
}

func echoDatagrams(conn *net.UDPConn) {
	buffer := make([]byte, width+65_535)
	for {
		n, peer, err := conn.ReadFromUDPAddrPort(buffer[width:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			copy(buffer, prefix())
			conn.WriteToUDPAddrPort(buffer[:width+n], peer) // its fate is its own
		}
	}
}

func main() {
	runtime.GOMAXPROCS(1)
	address := net.JoinHostPort(os.Args[1], os.Args[2])
	datagrams, err := net.ListenPacket("udp", address)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	go echoDatagrams(datagrams.(*net.UDPConn))
	fmt.Println("ready")
	for {
		conn, err := listener.Accept()
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors
			continue
		}
		go echo(conn.(*net.TCPConn))
	}
}
