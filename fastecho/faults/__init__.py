"""Wrong on purpose: what is done to replies by a plan, with a seed, and logged.

The map; imports point down::

    streams  datagrams  a listener and its streams that misbehave; a datagram socket
    mischief            what all such sockets of a server share
    script              one connection of a decision log, read
    pump                sends a stream's pieces, each once the last was read
    pieces              what leaves, cut and joined as was decided, and when
    splitting           which of an echo's bytes are the reply to which message
    journal             the decision log, written
    decisions           what a plan does to one reply: drawn from seed, connection and message
    plan                what a fault plan says; the table of all faults
    quantities          values as people write them: `1%`, `100ms`, `10k`, `1-5`

A server without a plan imports the last two alone, for its settings.
"""
