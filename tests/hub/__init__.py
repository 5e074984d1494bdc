"""A Hub on this machine: the real client's protocol, with faults on request."""
