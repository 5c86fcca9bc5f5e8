"""Git's services (upload-pack, receive-pack, ls-refs), blocking, over a `Channel`."""
