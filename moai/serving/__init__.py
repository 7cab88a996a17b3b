"""The server: an engine that batches questions, an HTTP API of OpenAI's form, and a page that uses both."""
