"""Programs that make what the repository holds: docs, pictures, example workflows, locales."""
