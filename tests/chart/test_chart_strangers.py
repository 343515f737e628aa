"""Foreign values, releases and namespaces: text fields of Kubernetes are rendered as text."""

from typing import Any

import pytest

from kit.cluster.helm_chart import Helm, HelmError
from kit.strangers import StrangeValues, strangers


def _render(helm: Helm, stranger: StrangeValues) -> list[dict[str, Any]]:
    return helm.render(values=stranger.values, release=stranger.release, namespace=stranger.namespace)


def _texts_of_names(node: Any, path: str = "") -> list[tuple[str, object]]:
    """Every name, namespace, label, annotation, argument and variable with its path."""
    if isinstance(node, dict):
        found = []
        for key, value in node.items():
            here = f"{path}.{key}"
            if key in {"name", "namespace", "serviceAccountName", "image", "value", "secretName", "claimName"}:
                found.append((here, value))
            elif key in {"labels", "annotations", "matchLabels", "nodeSelector"}:
                found += [(f"{here}.{name}", text) for name, text in (value or {}).items()]
            elif key in {"args", "command", "resourceNames", "apiGroups", "resources", "verbs"} and isinstance(
                value, list
            ):
                found += [(f"{here}[{number}]", text) for number, text in enumerate(value)]
            if isinstance(value, dict | list):
                found += _texts_of_names(value, here)
        return found
    if isinstance(node, list):
        return [found for number, item in enumerate(node) for found in _texts_of_names(item, f"{path}[{number}]")]
    return []


@pytest.mark.parametrize("stranger", strangers("values", StrangeValues))
def test_values_are_rendered_as_text_or_refused_by_name(helm: Helm, stranger: StrangeValues) -> None:
    if stranger.refused_with:
        with pytest.raises(HelmError) as caught:
            _render(helm, stranger)
        assert [text for text in stranger.refused_with if text not in str(caught.value)] == []
        return
    objects = _render(helm, stranger)
    texts = [
        (f"{found['kind']}{path}", value)
        for found in objects
        if found["kind"] != "CustomResourceDefinition"
        for path, value in _texts_of_names(found)
    ]
    assert len(texts) > 20
    assert [(path, value) for path, value in texts if not isinstance(value, str | dict)] == []
