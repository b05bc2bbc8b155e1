"""AMQP 1.0: types, performatives, SASL, the connection engine, messages."""
