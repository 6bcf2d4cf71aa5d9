"""Two builds compared on live or stored requests: bounds that hold at every moment, and the verdict drawn from them."""
