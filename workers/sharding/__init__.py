"""Planning a job whose inputs are a file: a limited child cuts the file into shards, its supervisor records them.

The child reads untrusted files and imports neither torch nor anything of SQL or Redis.
"""
