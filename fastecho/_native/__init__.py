"""The compiled twin of `fastecho._pure`, from `ext/`; the `.pxd` are its C interface."""
