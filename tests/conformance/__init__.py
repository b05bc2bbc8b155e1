"""Dialogues between a served hub and the clients that people have: official SDKs, unmodified."""
