"""The relay of due tasks from the retry topics to the lanes."""
