"""A real ComfyUI for tools, benchmarks and tests: server, page, graphs, and its process."""
