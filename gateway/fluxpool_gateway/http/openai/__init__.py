"""The images endpoint of the OpenAI API, on top of the native submission and its wait; knows nothing of Kafka."""

from fluxpool_gateway.http.openai.image_routes import PATH, router

__all__ = ["PATH", "router"]
