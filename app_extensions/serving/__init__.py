"""The web servers that Candlery can run on, behind one port; see `port.Server`."""
