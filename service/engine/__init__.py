"""Who keeps streams alive, in the API process: many requests, one model, and a worker that may die. No FastAPI, no pydantic, no torch.

`interface` is what the routes see; `engine` implements it over `rollout`, `supervisor` and `worker_process`.
"""
