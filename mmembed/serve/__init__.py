"""The search page and its HTTP API. The one place that imports FastAPI, which the extra `mmembed[serve]` brings."""
