"""The three services of the relay: gateway (data plane), accounting, admin (control plane). Read gateway/proxy.py first."""
