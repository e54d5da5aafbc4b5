"""What exists because many requests want one model at once. No FastAPI, no pydantic and no environment in here.

`interface` is what the routes see; `client` implements it and supervises `worker`, a process of its own.
"""
