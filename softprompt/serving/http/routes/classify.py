"""``POST /v1/classify``: texts in, labels with probabilities out."""

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.serving.http.completion_service import classify_examples, count_usage
from softprompt.serving.http.http_errors import ApiError
from softprompt.serving.http.openapi import describe_responses
from softprompt.serving.http.request_context import ServingContext, Timeout, make_warnings_field
from softprompt.serving.http.schemas.answer_schemas import Classification
from softprompt.serving.http.schemas.request_schemas import ClassifyRequest


def create_classify_router(serving: ServingContext, route: type[APIRoute]) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=route)

    @router.post("/v1/classify", responses=describe_responses(Classification), summary="Tell the labels of texts")
    async def label(request: Request, body: ClassifyRequest, timeout: Timeout = None) -> Response:
        """One forward pass; the probabilities of all labels sum to 1. ``input`` is a text, a row with the columns of
        the template, or a list of them; ``results`` is a list in the same order."""
        context = await serving.resolve(request, body.model, timeout, body.baseline)
        if context.served.spec.kind != "classification":
            message = f"'{context.found.id}' generates text and has no labels: ask /v1/completions"
            raise ApiError(422, "no_labels", message, param="model")
        given = body.input if isinstance(body.input, list) else [body.input]
        rows = [{"text": one} if isinstance(one, str) else one.model_dump(exclude_unset=True) for one in given]
        examples = serving.build_examples(context, rows)
        serving.reserve_tokens(context, examples, 0)
        predictions = await context.finish_or_cancel(classify_examples(serving, context, examples))
        for index, one in enumerate(predictions):
            if one.cut:
                serving.warn_of_cut(context, index, one.prompt_tokens or 0)
        usage = count_usage([one.prompt_tokens or 0 for one in predictions], 0)
        serving.record_usage(context.outcome, usage["prompt_tokens"], 0)
        serving.record_answers(context.outcome, [str(one.label) for one in predictions], predictions)
        results = [
            {"index": index, "label": one.label, "probabilities": one.probabilities}
            for index, one in enumerate(predictions)
        ]
        answer = {"object": "classification", "model": context.found.id, "results": results, "usage": usage}
        return JSONResponse({**answer, **make_warnings_field(context.outcome)})

    return router
