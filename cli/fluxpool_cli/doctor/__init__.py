"""`fluxpool doctor`: checks each part that Fluxpool needs, and says what is right, what is wrong and what to do."""
