"""`fluxpool rate`, `compare` and `feedback`: what people say of images, by the gateway's HTTP routes."""
