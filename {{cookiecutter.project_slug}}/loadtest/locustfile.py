"""Yours: what `make load` and `make tune` ask of the service, by Locust.

A number at @task is how often it comes beside the others. How to write more of them: docs/load.md.
"""

import random

from locust import FastHttpUser, constant_throughput, task

from tools.openapi import calls_of_the_service

NAMES = ["Ada", "Grace", "Katherine"]


class Visitor(FastHttpUser):
    wait_time = constant_throughput(5)  # of one user, requests a second

    @task(20)
    def index(self) -> None:
        self.client.get("/")

    @task(20)
    def greet(self) -> None:
        self.client.get(f"/greet/{random.choice(NAMES)}", name="/greet/{name}")

    @task(6)
    def greet_with_a_body(self) -> None:
        self.client.post("/greet", json={"name": random.choice(NAMES)})

    @task(1)
    def primes(self) -> None:
        self.client.get("/primes/1000", name="/primes/{limit}")


# The routes that /openapi.json describes, where the service has one, with bodies made up from it.
if calls := calls_of_the_service():

    class Typed(FastHttpUser):
        wait_time = constant_throughput(5)
        tasks = calls
