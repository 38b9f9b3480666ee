"""A Hugging Face Hub of the tests' own: it speaks the Hub's protocol over HTTP on loopback, to the real clients.

A `Hub` (`hub`, `storage`, `xet_store`) knows users, organizations and repositories, and keeps contents as files in one
folder. What the protocol asks of it is a table of routes (`repositories`, `listings`, `uploads`, `downloads`, `xet`):
functions from a request to a response (`protocol`), which know nothing of sockets. `HubServer` (`server`) serves them
and logs every request; what is to go wrong on the way is a list of `faults`.

Clients find it by HF_ENDPOINT, which they read when they are imported: hence the fixture `local_hub` (`fixtures`) runs
them in processes of their own.
"""

# How clients upload and download large files, by what they find in the environment; `lfs` if nothing is said.
MODES = {"lfs": {"HF_HUB_DISABLE_XET": "1"}, "xet": {"HF_HUB_DISABLE_XET": "0"}}
