"""docs/how-to/helm.md matches the chart: commands, values, images."""

import re
import shlex
from collections.abc import Iterator

import yaml

from fluxpool_operator.api import FluxWorkerPool
from kit.cluster.helm_chart import CHART, Helm, of_kind, only, pod_specs

ROOT = CHART.parents[1]
PAGE = (ROOT / "docs" / "how-to" / "helm.md").read_text()


def commands(program: str) -> Iterator[list[str]]:
    """The words of each shown command of a program, without its name."""
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            name, *words = shlex.split(line, comments=True)
            assert name in {"docker", "helm", "kubectl"}
            if name == program:
                yield words


def test_the_images_that_are_built_are_those_of_the_chart(helm: Helm) -> None:
    built = set()
    for words in commands("docker"):
        verb, file_flag, file, tag_flag, tag, context = words
        assert (verb, file_flag, tag_flag, context) == ("build", "-f", "-t", ".")
        assert f"docker build -f {file} -t {tag} ." in (ROOT / file).read_text()
        built.add(tag)
    asked = {
        container["image"]
        for spec in pod_specs(helm.render(values=_example())).values()
        for container in spec["containers"]
    }
    asked.add(only(helm.render(values=_example()), "FluxWorkerPool")["spec"]["worker"]["image"])
    assert built == asked


def test_every_helm_command_is_accepted(helm: Helm) -> None:
    verbs = set()
    for verb, *words in commands("helm"):
        verbs.add(verb)
        if verb in {"install", "upgrade"}:
            release, chart, *flags = words
            assert (ROOT / chart).resolve() == CHART
            helm.run("template", release, str(CHART), *flags)
    assert verbs == {"install", "test", "upgrade", "uninstall"}


def test_the_crd_that_is_applied_and_deleted_exists() -> None:
    folders = {word for words in commands("kubectl") for word in words if word.endswith("/")}
    assert folders == {"crds/"}
    assert list((ROOT / "crds").glob("*.yaml"))


def test_the_example_with_a_gateway_and_a_pool_renders_both(helm: Helm) -> None:
    objects = helm.render(values=_example())
    assert len(of_kind(objects, "Deployment")) == 2
    pool = only(objects, "FluxWorkerPool")
    FluxWorkerPool.model_validate({**pool, "metadata": {**pool["metadata"], "uid": "0", "generation": 1}})


def _example() -> dict[str, object]:
    (text,) = re.findall(r"^```yaml values\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return dict(yaml.safe_load(text))


def test_the_values_of_every_page_are_those_of_the_chart(helm: Helm) -> None:
    found = [
        yaml.safe_load(text)
        for page in (ROOT / "docs").rglob("*.md")
        for text in re.findall(r"^```yaml values\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    assert len(found) > 1
    for values in found:
        assert of_kind(helm.render(values=values), "Deployment")


def test_every_value_that_the_text_names_exists() -> None:
    text = re.sub(r"<!-- begin ([a-z-]+) -->.*?<!-- end \1 -->", "", PAGE, flags=re.DOTALL)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    named = re.findall(r"`((?:" + "|".join(values) + r")(?:\.[a-zA-Z]+)+)(?:=\w+)?`", text)
    assert "rbac.create" in named
    for path in named:
        found = values
        for name in path.split("."):
            if found == {}:
                break
            assert name in found, path
            found = found[name]
