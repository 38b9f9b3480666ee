"""A Hugging Face Hub of the tests' own: it speaks the Hub's protocol over HTTP on loopback, to the real clients.

A `Hub` (`hub`, `storage`) knows users, organizations and repositories, and keeps contents as files in one folder. What
the protocol asks of it is a table of routes (`repositories`, `uploads`, `downloads`): functions from a request to a
response (`protocol`), which know nothing of sockets. `HubServer` (`server`) serves them and logs every request.

Clients find it by HF_ENDPOINT, which they read when they are imported: hence the fixture `local_hub` (`fixtures`) runs
them in processes of their own.
"""
