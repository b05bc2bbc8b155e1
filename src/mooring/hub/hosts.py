"""Host names as clients write them: in URLs, tokens, user names and headers."""


def bare_host(text: str) -> str:
    """`localhost` of `LOCALHOST:443`, `localhost.` and the like; `::1` of `[::1]:443`."""
    text = text.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    if text.count(":") == 1:  # more of them are an IPv6 address without brackets
        text = text.partition(":")[0]
    return text.rstrip(".")
