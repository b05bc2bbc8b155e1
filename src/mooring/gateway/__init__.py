"""Sockets to sessions to domain: one adapter per protocol over one TLS transport."""
