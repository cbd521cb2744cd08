"""Where labelled people come from; one module a source."""
