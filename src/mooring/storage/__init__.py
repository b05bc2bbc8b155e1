"""The drivers of the ports that the domain declares: state and event log."""
