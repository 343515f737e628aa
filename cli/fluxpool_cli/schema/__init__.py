"""`fluxpool schema`: what messages, routes and resources look like, for programs."""
