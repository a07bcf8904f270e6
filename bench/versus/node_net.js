// Node's own event loop: node node_net.js HOST PORT.

'use strict';

const dgram = require('node:dgram');
const net = require('node:net');

const LONGEST = 65536; // bytes of a line, without its end
const PIECE = 131072; // bytes of replies that are made at once; what waits is there twice
const WAITING = 65536; // of those that wait to be sent: more, and no more are made
const WIDTH = 26; // [Sun Nov 22 14:03:54 2026]
const LITTLE = Math.floor(PIECE / (WIDTH + 1)); // so much input surely gives no more than a piece
const LINGER = 2000; // milliseconds for the peer to close, after a line that was too long
const BACKLOG = 4096;

let second = -1;
let rendered = '';

// Once a second.
function prefix() {
  const now = Math.floor(Date.now() / 1000);
  if (now !== second) {
    second = now;
    const [weekday, month, day, year, time] = new Date(now * 1000).toString().split(' ');
    rendered = `[${weekday} ${month} ${day.replace(/^0/, ' ')} ${time} ${year}]`;
  }
  return rendered;
}

// Bytes come and go as strings of one-byte characters (latin1): V8 is quickest at those.
class Connection {
  constructor(socket) {
    this.socket = socket;
    this.start = ''; // of a line
    this.uncut = '';
    this.step = LITTLE;
    this.stamp = '';
    this.tooLong = false;
    this.ended = false;
    socket.setEncoding('latin1');
    socket.on('data', (data) => this.receive(data));
    socket.on('drain', () => this.answer());
    socket.on('end', () => this.finish());
    socket.on('error', () => socket.destroy());
  }

  receive(data) {
    if (this.tooLong) return;
    const whole = this.start + data;
    if (!data.includes('\n') && whole.length <= LONGEST) {
      this.start = whole;
      return;
    }
    this.start = '';
    this.uncut = whole;
    // Where the first line is short, take it that there are many.
    this.step = whole.indexOf('\n') < WIDTH ? LITTLE : LONGEST;
    this.stamp = prefix();
    this.answer();
  }

  // Write replies as long as they are taken; no more is read until all are.
  answer() {
    const { socket, stamp } = this;
    let taken = true;
    while (taken && this.uncut !== '') {
      let end = this.uncut.lastIndexOf('\n', this.step);
      if (end < 0) end = this.uncut.indexOf('\n');
      if (end < 0 || end > LONGEST) {
        this.tooLong = this.uncut.length > LONGEST;
        this.start = this.tooLong ? '' : this.uncut;
        this.uncut = '';
        break;
      }
      const replies = stamp + this.uncut.slice(0, end).replaceAll('\n', '\n' + stamp) + '\n';
      if (replies.length > PIECE && this.step > LITTLE) {
        this.step = LITTLE;
        continue;
      }
      this.uncut = this.uncut.slice(end + 1);
      taken = socket.write(replies, 'latin1');
    }
    if (!taken) socket.pause();
    else if (this.tooLong) this.linger();
    else if (this.ended) this.finish();
    else if (socket.isPaused()) socket.resume();
  }

  // The peer has sent all. A paused socket says so too, when there may be replies to make yet.
  finish() {
    this.ended = true;
    if (this.uncut !== '' || this.socket.writableEnded) return;
    this.socket.end(this.start && prefix() + this.start, 'latin1');
  }

  // Closing with unread input resets the connection, and that may overtake replies.
  linger() {
    const { socket } = this;
    const timer = setTimeout(() => socket.destroy(), LINGER);
    socket.on('close', () => clearTimeout(timer));
    socket.end();
    socket.resume();
  }
}

const [host, port] = process.argv.slice(2);
const options = { allowHalfOpen: true, noDelay: true, highWaterMark: WAITING };
const tcp = net.createServer(options, (socket) => new Connection(socket));
const udp = dgram.createSocket(net.isIPv6(host) ? 'udp6' : 'udp4');

udp.on('message', (data, { address, port }) => {
  udp.send([prefix(), data], port, address, () => {}); // its fate is its own
});
udp.bind(Number(port), host, () => {
  tcp.listen({ host, port: Number(port), backlog: BACKLOG }, () => console.log('ready'));
});
