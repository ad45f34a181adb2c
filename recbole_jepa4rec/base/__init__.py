"""Files, processes, keyed randomness and ends before their time: what every floor stands on."""
