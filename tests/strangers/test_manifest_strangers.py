"""Foreign pools parsed by the operator; `tests/cluster` sends the same inputs to the API server."""

import pytest

from fluxpool_operator.api import FluxWorkerPool, InvalidPoolError
from kit.scaling.pools import edited, pool_body
from kit.strangers import StrangeManifest, strangers


@pytest.mark.parametrize("stranger", strangers("manifests", StrangeManifest))
def test_a_pool_is_accepted_or_refused_by_name(stranger: StrangeManifest) -> None:
    body = edited(pool_body(), stranger.edits)
    if not stranger.refused_with or stranger.by == "api-server":
        assert FluxWorkerPool.parse(body).spec.worker.image
        return
    with pytest.raises(InvalidPoolError) as caught:
        FluxWorkerPool.parse(body)
    assert [text for text in stranger.refused_with if text not in str(caught.value)] == []
