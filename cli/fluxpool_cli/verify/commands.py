"""`fluxpool verify`: the command line; `reports` judges the files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.gateway import GatewayOptions
from fluxpool_cli.options import printable_path, with_option_groups
from fluxpool_cli.output import OutputOptions, Result, write_result
from fluxpool_cli.terminal import utc_text
from fluxpool_cli.verify.reports import FileReport, Verdict, report_on, with_task
from fluxpool_client import Client, NotFoundError
from fluxpool_contract.messages import check_request_id
from fluxpool_worker.image_marks import ContentCredentials


@with_option_groups
def verify(
    files: Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP files.", show_default=False)],
    *,
    trust: Annotated[
        Path | None,
        typer.Option(
            help="Root certificates (PEM): a file must be signed by a signer below one of them.",
            callback=printable_path,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="A gateway to ask whether it has a file, by the request_id in it and its SHA-256."),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="The same with the gateway and the key of a profile.")] = None,
    output: OutputOptions,
) -> None:
    """Tell which image files say that a model made them.

    Fetches nothing that a file names. Exits 0 when every file is marked and no mark is invalid, 1 when one is not, 2
    when one cannot be read.
    """
    anchors = None if trust is None else _anchors(trust)
    reports = [report_on(file, anchors=anchors) for file in files]
    if url is not None or profile is not None:
        with GatewayOptions(url=url, profile=profile).client() as client:
            reports = [_asked(client, report) for report in reports]
    result = Result(
        document={"files": [report.document() for report in reports]},
        parts=[line for report in reports for line in _lines(report)],
        names=[str(report.file) for report in reports],
    )
    write_result(result, output)
    verdicts = {report.verdict for report in reports}
    wrong = sum(report.verdict is not Verdict.MARKED for report in reports)
    if wrong:
        code = ExitCode.USAGE if Verdict.UNREADABLE in verdicts else ExitCode.FAILED
        raise CommandError(code, f"{wrong} of {len(reports)} files are not marked, or their marks do not hold")


def _anchors(file: Path) -> str:
    try:
        content = file.read_bytes()
        x509.load_pem_x509_certificates(content)
        return content.decode()
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except ValueError:
        reason = "holds no certificates in PEM form"
    raise typer.BadParameter(f"{file}: {reason}; name a file with root certificates", param_hint="--trust")


def _asked(gateway: Client, report: FileReport) -> FileReport:
    """The report with the answer of a gateway, when the file names a task."""
    request_id = (report.parameters or {}).get("request_id")
    try:
        check_request_id(request_id if isinstance(request_id, str) else "")
    except ValueError:
        return report
    try:
        return with_task(report, gateway.get(str(request_id)))
    except NotFoundError:
        return with_task(report, None)


def _lines(report: FileReport) -> Iterable[str]:
    yield f"{report.file}: {report.verdict}{f', {report.problem}' if report.problem else ''}"
    found = report.found
    if found is None:
        return
    yield f"  marks       {', '.join(found.marks) or 'none'}"
    if found.source_type is not None:
        yield f"  XMP         {found.source_type}{f', {found.creator_tool}' if found.creator_tool else ''}"
    if found.credentials is not None:
        yield f"  signature   {_signature(found.credentials)}"
    if report.is_ours is not None:
        yield f"  ours        {'yes' if report.is_ours else 'no'}"
    if report.model is not None:
        licence = f" ({report.model_family}; licence of the weights: {report.model_license})"
        yield f"  model       {report.model}{licence if report.model_license else ''}"
    if report.parameters is not None:
        yield f"  parameters  {', '.join(f'{name}={value!r}' for name, value in report.parameters.items())}"


def _signature(credentials: ContentCredentials) -> str:
    who = f"{credentials.signer or 'an unnamed signer'} ({credentials.issuer or 'of no organization'})"
    when = "without a time stamp" if credentials.signed_at is None else f"at {utc_text(credentials.signed_at)} UTC"
    return f"{credentials.state}: {who}, {when}, with {credentials.generator or 'an unnamed program'}"
