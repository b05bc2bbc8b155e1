"""The domain: what a hub means. Knows no protocol, no SQL dialect, no socket."""
