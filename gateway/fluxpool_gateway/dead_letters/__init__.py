"""Dead letters over HTTP: projected with their resolutions, listed, shown, exported, replayed by jobs, discarded."""
