"""Flask under gunicorn's gthread: prometheus-flask-exporter, gunicorn's access log, an id."""

from typing import Any

from flask import Flask, jsonify, request
from telemetry import LEVEL, greet, index, new_id

app = Flask(__name__)


@app.get("/")
def index_view() -> Any:
    return jsonify(index())


@app.get("/greet/<name>")
def greet_view(name: str) -> Any:
    return jsonify(greet(name))


if LEVEL != "bare":
    from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

    GunicornInternalPrometheusMetrics(app, group_by="url_rule")

if LEVEL == "full":

    @app.after_request
    def identify(response: Any) -> Any:
        response.headers["X-Request-ID"] = request.headers.get("X-Request-ID") or new_id()
        return response
