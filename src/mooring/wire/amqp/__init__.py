"""AMQP 1.0: types, performatives, SASL, the connection engine, messages.

How it fits together, from the bytes up:

    types           values of the type system, both ways
    performatives   the table of composites: frames' bodies, SASL, termini, outcomes, errors
    frames          protocol headers and frames out of a byte stream
    messages        the sections of a payload
    connection      the engine: SASL, open and close, limits, time; hands out `engine_events`
    session         windows, handles, delivery ids, settlement
    link            attach and detach, credit, sending, reassembly

`connection` describes the engine's use and its states. It serves either end: the tests let a
client of it talk with a server of it.
"""
