"""What the runtime uses of its libraries that they do not promise to keep, and what it stands for.

A version of a library that lacks one of these is told by test_private_names.py; a use that is not
listed here too.
"""

PRIVATE = {
    "aiohttp.web_protocol:RequestHandler": {
        "_loop": "the loop of a connection",
        "_force_close": "whether the connection is ended without a farewell",
        "_messages": "heads that wait for their handler",
        "_request_in_progress": "whether a handler works for the connection",
        "_task_handler": "the task that handles its requests one after the other",
        "_waiter": "what the task waits on while there is no request",
        "_handle_request": "calls the handler and sends its response",
        "_request_count": "how many requests the connection had",
        "_drain_helper": "waits until the client has taken enough",
        "_paused": "whether the client takes less than it is sent",
        "_upgraded": "whether the client asked for another protocol",
    },
    "aiohttp.web_protocol:": {
        "StreamWriter": "what writes a response, by the name that its maker looks up",
    },
    "aiohttp.web_server:Server": {
        "_connections": "the open connections",
        "_kwargs": "the options of each connection",
        "_loop": "the loop of the server",
    },
    "aiohttp.web_runner:BaseRunner": {
        "_server": "what makes a connection's protocol",
        "_make_server": "starts the Application and gives its server",
    },
    "aiohttp.web_app:Application": {
        "_client_max_size": "the largest body",
        "_client_max_fields": "how many fields a form may have",
        "_handler_args": "the options of the user's for each connection",
        "_loop": "the loop of the Application",
        "_make_request": "makes the request, where the user has none of their own",
    },
    "aiohttp.web_request:Request": {
        "_client_max_size": "the largest body",
        "_finish": "removes the files of a form",
        "_headers": "the head of the request",
        "_match_info": "the route that was found",
        "_method": "the method",
        "_message": "the head as it was parsed",
        "_payload": "the body that is received",
        "_payload_writer": "what writes the response",
        "_prepare_hook": "is called before the head of a response is written",
        "_protocol": "the connection of the request",
        "_rel_url": "path and query, as they were sent",
        "_version": "that of HTTP, in which it is answered",
    },
    "aiohttp.web_response:Response": {
        "_body": "the bytes of the body, or what gives them",
        "_body_length": "the bytes that were written",
        "_chunked": "whether it was asked to be sent in chunks",
        "_compression": "whether it was asked to be compressed",
        "_cookies": "the cookies that it sets",
        "_eof_sent": "whether all of it was written",
        "_headers": "the head of the response",
        "_keep_alive": "whether the connection stays; None where nobody said",
        "_reason": "the words behind the status",
        "_status": "the status",
        "_must_be_empty_body": "whether the response has no body whatever its length says",
    },
    "aiohttp.web_ws:WebSocketResponse": {
        "_closing": "whether the other end said that it closes",
    },
    "aiohttp.web_urldispatcher:UrlMappingMatchInfo": {
        "_apps": "the Application and its subapplications on the way to the route",
    },
    "aiohttp.http_writer:": {
        "_serialize_headers": "the bytes of a head",
    },
    "aiohttp.http_writer:StreamWriter": {
        "_compress": "what compresses the body",
        "_write": "writes a piece",
        "_writelines": "writes pieces at once",
    },
    "aiohttp.streams:StreamReader": {
        "_exception": "why there is no more to read",
        "_loop": "the loop of the reader",
        "_wait": "waits for data",
    },
    "aiohttp.multipart:MultipartReader": {
        "_read_headers": "reads the head of a part",
        "_readline": "reads a line between the parts",
    },
    "aiohttp.test_utils:BaseTestServer": {
        "_make_runner": "gives the runner that a test server uses",
    },
    # not marked as private, and yet nobody's to call but gunicorn's
    "gunicorn.arbiter:Arbiter": {
        "WORKERS": "the workers by their PIDs",
        "LISTENERS": "the listening sockets",
        "SIGNALS": "the signals that it handles",
        "kill_workers": "sends a signal to all of them",
        "manage_workers": "starts or ends workers until their number is right",
        "reap_workers": "buries those that ended",
        "murder_workers": "ends those that do not answer",
        "wait_for_signals": "waits until there is something to do",
    },
    # for streaq, which only projects with a job queue have
    "streaq.worker:Worker": {
        "_cancel_scopes": "what ends the jobs at work",
        "_read_streams_legacy": "takes entries from Redis before version 8",
        "_read_streams_max_count": "takes entries from Redis",
    },
    "prometheus_client.metrics:": {
        "_build_full_name": "the name of a metric with its namespace, subsystem and unit",
    },
    "prometheus_client.metrics:MetricWrapperBase": {
        "_child_samples": "the samples of a metric without labels, or of one of its children",
        "_documentation": "the help text",
        "_is_observable": "whether it has numbers of its own, or only children",
        "_labelnames": "the names of its labels",
        "_labelvalues": "the values of its labels, of a child",
        "_lock": "held while children come and go",
        "_metric_init": "makes the numbers",
        "_metrics": "the children by the values of their labels",
        "_name": "the name without a suffix",
        "_type": "counter, gauge and so on",
    },
    "prometheus_client.metrics:Gauge": {
        "_multiprocess_mode": "how the processes' numbers make one",
        "_value": "the number",
    },
    "prometheus_client.metrics:Enum": {
        "_states": "what it may be",
    },
    "prometheus_client.registry:CollectorRegistry": {
        "_collector_to_names": "the collectors that are registered",
    },
    "sys:": {
        "_getframe": "the place in the code that defines a metric",
    },
    "prometheus_client.values:": {
        "ValueClass": "what every metric makes its numbers of",
    },
}
