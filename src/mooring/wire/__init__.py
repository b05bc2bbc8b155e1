"""Sans-IO wire formats: bytes to values and back. No sockets, no clock, nothing else of mooring."""
