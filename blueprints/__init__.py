"""HTTP and WebSocket: parse, one service call, answer."""
