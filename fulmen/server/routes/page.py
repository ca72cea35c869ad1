"""The chat page over HTTP."""

from fastapi import APIRouter, Request, Response

from fulmen import __version__
from fulmen.server.errors import Refusal
from fulmen.server.page_files import PAGE_HEADERS, is_for_browser, page_files
from fulmen.server.routes.api import Api, json_response, new_router


def page_router(api: Api) -> APIRouter:
    """Return the routes of the page. `/` is the page for a browser, a greeting for a program."""
    router, has_page = new_router(), not api.config.no_page

    @router.get("/", include_in_schema=False)
    @router.get("/api/hello", include_in_schema=False)
    async def root(request: Request) -> Response:
        if has_page and is_for_browser(request.url.path, request.headers.get("accept", "")):
            return _answer(request, "index.html")
        names = list(api.names)
        greeting = json_response({"name": "fulmen", "version": __version__, "models": names})
        greeting.headers["vary"] = "accept"
        return greeting

    @router.get("/page/{path:path}", include_in_schema=False)
    async def file(request: Request, path: str) -> Response:
        if not has_page or path not in page_files():
            raise Refusal(404, "the page has no such file")
        return _answer(request, path)

    return router


def _answer(request: Request, path: str) -> Response:
    file = page_files()[path]
    headers = {**PAGE_HEADERS, "etag": file.etag}
    if path == "index.html":
        headers["vary"] = "accept"
    if file.is_in(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
