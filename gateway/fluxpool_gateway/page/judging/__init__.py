"""What people say of images: `rating` beside an image, `comparing` in pairs, `results` as figures and a plot."""

from fluxpool_gateway.page.judging import comparing, rating, results

ROUTERS = (rating.router, comparing.router, results.router)

__all__ = ["ROUTERS"]
