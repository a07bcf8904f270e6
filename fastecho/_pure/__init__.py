"""The pure twin: the specification of the hot path, written to be read.

Everything here has a compiled twin in `fastecho._native` (from `ext/`) that behaves the same,
byte for byte; a change to one is a change to both. `fastecho.backend` chooses between them.
"""
