"""The device agent: keeps one verified build on a device, fetches another when it is told to, and goes back by itself.

It needs the Python standard library and `tuf` (with `cryptography`, which checks signatures), and nothing else of
fleetc: the folder `device` can be copied to a board and run with `python3 -m device`.

    versions/<digest>/        a verified build: artifact/, health/, SHA256SUMS; <digest> is that of its manifest
    current                   link to the one that is used
    state.json                what is intended: the link follows it, whatever ended the agent in between
    metadata/, downloads/     what TUF has fetched
"""
