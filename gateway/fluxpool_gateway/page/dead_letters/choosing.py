"""Which dead letters a view is about: by the filters in its address, or by their ids. Pure."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field

from fluxpool_gateway.dead_letters.rows import OPEN
from fluxpool_gateway.dead_letters.views import DeadLetterFilters, Id, State
from fluxpool_gateway.http.task_routes import Moment
from fluxpool_gateway.page.filters import Blank
from fluxpool_gateway.page.forms import Form
from fluxpool_gateway.page.operations import wanted
from fluxpool_gateway.page.rendering import show_stamp

MAX_CHOSEN: Final = 200
"""By their ids; a page of the list has fewer."""
_TEXTS: Final = ("error_class", "error_code", "disposition", "pool", "request_id")
_TIMES: Final = ("since", "until")


_Text = Annotated[Annotated[str, Field(max_length=512)] | None, Blank]


class Filters(BaseModel):
    """Filters as forms and links send them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    state: State | Literal["any"] = "open"
    error_class: _Text = None
    error_code: _Text = None
    disposition: _Text = None
    pool: _Text = None
    request_id: _Text = None
    since: Annotated[Moment | None, Blank] = None
    until: Annotated[Moment | None, Blank] = None

    @property
    def states(self) -> tuple[str, ...]:
        """As the API takes them."""
        return () if self.state == "any" else (self.state,)

    @property
    def given(self) -> list[tuple[str, str]]:
        """The filters beside the state, as fields of a form."""
        texts = [(name, value) for name in _TEXTS if (value := getattr(self, name)) is not None]
        times = [(name, show_stamp(moment)) for name in _TIMES if (moment := getattr(self, name)) is not None]
        return texts + times

    def values(self) -> dict[str, Any]:
        """The same for the models of the API."""
        values: dict[str, Any] = {name: (value,) for name in _TEXTS if (value := getattr(self, name)) is not None}
        return values | {name: moment for name in _TIMES if (moment := getattr(self, name)) is not None}

    def address(self, **more: str) -> str:
        """The query of a view of the same dead letters."""
        return urlencode([("state", self.state), *self.given, *more.items()])

    def of_cause(self, cause: Mapping[str, str | None]) -> str:
        """The query of the dead letters of one cause among these."""
        values = self.model_dump() | {name: value for name, value in cause.items() if value is not None}
        return Filters.model_validate(values).address()


class Choice(BaseModel):
    """Open dead letters that something is to be done about: some by their ids, or all that pass filters."""

    model_config = ConfigDict(frozen=True)

    ids: Annotated[tuple[Id, ...], Field(max_length=MAX_CHOSEN)] = ()
    filters: Filters = Filters()

    @property
    def fields(self) -> list[tuple[str, str]]:
        """As fields of a form."""
        return [("id", name) for name in self.ids] or [("all", "1"), *self.filters.given]

    def values(self) -> dict[str, Any]:
        """As `ReplayRequest` has it."""
        if self.ids:
            return {"ids": self.ids}
        return {"filter": DeadLetterFilters.model_validate(self.filters.values())}


def choice_of(pairs: Sequence[tuple[str, str]]) -> Choice:
    """The choice that a form or an address has; raises `ProblemError` (422) when it has none."""
    form = Form(list(pairs))
    ids = tuple(dict.fromkeys(form.all("id")))
    if ids or not form.get("all"):
        # Neither is a mistake, and never all of them.
        return wanted(Choice, {"ids": ids or None})
    return Choice(filters=wanted(Filters, {**dict(pairs), "state": OPEN}))
