"""relayctl: the control plane's API as a command line, made from the document it serves. Read table.py first."""
