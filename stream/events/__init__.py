"""Events on the wire and in tables: settings, decoding, rejects, encoding."""
