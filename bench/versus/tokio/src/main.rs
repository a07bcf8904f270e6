//! Rust's tokio on one thread, a task for each client: tokio_net HOST PORT.

use std::cell::Cell;
use std::env;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

const LONGEST: usize = 65_536; // bytes of a line, without its end
const PIECE: usize = 262_144; // bytes of replies that are made at once
const RECEIVE: usize = 65_536;
const WIDTH: usize = 26; // [Sun Nov 22 14:03:54 2026]
const LINGER: Duration = Duration::from_secs(2); // for the peer to close, after too long a line

type Prefix = [u8; WIDTH];

/// For messages that have come just now; rendered once a second.
fn prefix() -> Prefix {
    thread_local!(static LATEST: Cell<(u64, Prefix)> = const { Cell::new((0, [0; WIDTH])) });
    let now = SystemTime::now();
    let second = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (rendered, mut prefix) = LATEST.get();
    if second != rendered {
        let local = chrono::DateTime::<chrono::Local>::from(now);
        let text = local.format("[%a %b %e %H:%M:%S %Y]").to_string();
        prefix.copy_from_slice(text.as_bytes());
        LATEST.set((second, prefix));
    }
    prefix
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BytesMut::new();
    let mut replies = Vec::new();
    loop {
        input.reserve(RECEIVE);
        let scanned = input.len();
        let ended = stream.read_buf(&mut input).await? == 0;
        let prefix = prefix();
        let mut from = scanned; // where the next line's end may be, at the earliest
        let mut start = 0; // of that line
        while let Some(length) = memchr::memchr(b'\n', &input[from..]) {
            let end = from + length + 1;
            if end - start - 1 > LONGEST {
                break;
            }
            if replies.len() + WIDTH + end - start > PIECE {
                stream.write_all(&replies).await?;
                replies.clear();
            }
            replies.extend_from_slice(&prefix);
            replies.extend_from_slice(&input[start..end]);
            start = end;
            from = end;
        }
        input.advance(start);
        let too_long = input.len() > LONGEST;
        if ended && !input.is_empty() {
            replies.extend_from_slice(&prefix);
            replies.extend_from_slice(&input);
        }
        stream.write_all(&replies).await?;
        replies.clear();
        if ended {
            return Ok(());
        }
        if too_long {
            return discard(stream).await;
        }
    }
}

/// Closing with unread input resets the connection, and that may overtake replies.
async fn discard(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let rest = async { while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {} };
    let _ = timeout(LINGER, rest).await;
    Ok(())
}

async fn echo_datagrams(socket: UdpSocket) {
    let mut buffer = vec![0; WIDTH + 65_535];
    loop {
        if let Ok((size, peer)) = socket.recv_from(&mut buffer[WIDTH..]).await {
            buffer[..WIDTH].copy_from_slice(&prefix());
            let _ = socket.send_to(&buffer[..WIDTH + size], peer).await; // its fate is its own
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let address = words[..2].join(":");
    let datagrams = UdpSocket::bind(&address).await?;
    let listener = TcpListener::bind(&address).await?;
    tokio::spawn(echo_datagrams(datagrams));
    println!("ready");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(echo(stream))),
            Err(_) => sleep(Duration::from_millis(10)).await, // out of descriptors
        }
    }
}
