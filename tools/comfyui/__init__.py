"""A real ComfyUI for tools, benchmarks and tests: server, client, browser page, and its process."""
