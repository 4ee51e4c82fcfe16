"""What does chunking buy? PROTOCOL.md says what is measured; __main__.py runs it."""
