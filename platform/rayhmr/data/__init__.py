"""Person shards: `schema` says what they are, `prepare` writes them, `stream` feeds training."""
