"""`make test-clients`: the TypeScript SDK and Claude Code, both from npm, through the relay. Read __main__.py first."""
