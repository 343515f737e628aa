"""Asks the routes of the API on behalf of the page: a form becomes their request, their response becomes their view.

So what a route checks, counts and logs is the same for people and programs. Knows no route itself.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import Response
from pydantic import BaseModel, ValidationError

from fluxpool_contract.problems import FieldProblem, explain, summarize
from fluxpool_gateway.http.problem import ProblemCode, ProblemError

Model = TypeVar("Model", bound=BaseModel)


def wanted(model: type[Model], values: Mapping[str, Any]) -> Model:
    """The request that a form asks for; raises `ProblemError` (422) with each field that is not allowed."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise refused(*explain(error)) from error


def answered(response: Response, model: type[Model]) -> Model:
    """What a route answered."""
    return model.model_validate_json(bytes(response.body))


def refused(*fields: FieldProblem) -> ProblemError:
    """422 for fields of a form."""
    return ProblemError(
        ProblemCode.INVALID_REQUEST, summarize(fields), fields=fields, status=HTTPStatus.UNPROCESSABLE_ENTITY
    )


def as_number(text: str) -> float | int | str:
    """A number as a form has it; what is none stays a text, which the request's model refuses by name."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
