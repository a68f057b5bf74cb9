"""The pages that are ours among Flower's: a task with its jobs, the way to a job, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery.events.state import Task
from flower.urls import settings as flower_settings
from flower.utils.tasks import get_task_by_id
from flower.views import BaseHandler
from tornado.template import Loader, Template
from tornado.web import HTTPError, RequestHandler, authenticated

from ondol.broker.shown_jobs import jobs_shown

_OWN_TEMPLATES = Path(__file__).with_name("templates")
_TASK_PAGE = "task_with_jobs.html"


class Templates(Loader):
    """Flower's templates and ours beside them."""

    def __init__(self) -> None:
        super().__init__(flower_settings["template_path"])

    def _create_template(self, name: str) -> Template:
        own = _OWN_TEMPLATES / name
        return Template(own.read_bytes(), name=name, loader=self) if own.is_file() else super()._create_template(name)


class TaskPage(BaseHandler):  # type: ignore[misc]  # flower is untyped
    """A task with links to its jobs."""

    @authenticated
    def get(self, task_id: str) -> None:
        """The page; 404 for a task that was not heard of, or is forgotten."""
        task = get_task_by_id(self.application.events, task_id)
        if task is None:
            message = f"Nothing is remembered of task {task_id!r}: only the last tasks are, heard of while Flower ran"
            raise HTTPError(404, message)
        self.render(_TASK_PAGE, task=task, read_only=True, jobs=jobs_shown(task.kwargs))


class ToJob(BaseHandler):  # type: ignore[misc]  # flower is untyped
    """The way from a task to its job: the api says where that is."""

    def initialize(self, api_url: Callable[[], str | None]) -> None:
        """`api_url` gives the api's address, None while there is none."""
        self._api_url = api_url

    @authenticated
    def get(self, job_id: str) -> None:
        """A redirect to the job in the api."""
        url = self._api_url()
        if url is None:
            raise HTTPError(404, "The address of the api is not known: set ONDOL_PUBLIC_URL where Flower runs")
        self.redirect(f"{url}/v1/jobs/{job_id}")


class ResultsAreElsewhere(BaseHandler):  # type: ignore[misc]  # flower is untyped
    """Results are texts, too: they are the api's to give."""

    @authenticated
    def get(self, _task_id: str) -> None:
        """Always 404."""
        raise HTTPError(404, "Results are not shown here: ask the api for the job's result")


class Refused(RequestHandler):
    """What everybody gets who does not give the password, whatever was asked for."""

    def check_xsrf_cookie(self) -> None:
        """Not looked at: the password is missing anyway."""

    def prepare(self) -> None:
        """401, and how to do better."""
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="Ondol Flower", charset="UTF-8"')
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish("Access denied: user and password are needed\n")


def short_in_lists(task: Task) -> Task:
    """A task as a row of the list: of several jobs, the first and how many more."""
    jobs = jobs_shown(task.kwargs)
    if len(jobs) > 1:
        task.kwargs = f"jobs={jobs[0]} and {len(jobs) - 1} more"
    return task


def application_settings() -> dict[str, Any]:
    """Tornado's settings of Flower, with our templates."""
    return {**flower_settings, "template_loader": Templates()}
