"""Queues of a run's own on a server that speaks as SQS does, over real HTTP."""

import uuid

import pytest
from moto.server import ThreadedMotoServer

from pipeline.errors import RootError
from pipeline.orchestration.begin import begin
from pipeline.recipe import Recipe
from pipeline.runtime import waves
from pipeline.runtime.run import Run
from pipeline.runtime.run_queues import cancel_run, create_queue, depth, purge, queue_urls
from tests.unit.runtime.test_waves import RECIPE


@pytest.fixture(scope="module")
def server():
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(autouse=True)
def _sqs(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture
def template():
    return f"sqs://{uuid.uuid4().hex[:8]}-{{run}}-{{pool}}"


def test_a_run_makes_fills_and_empties_its_queue(tmp_path, template):
    run, said = begin(Recipe.parse(RECIPE), str(tmp_path), template)
    url = queue_urls(template, run)["cpu"]
    assert any(url in line for line in said)
    assert waves.enqueue(run, waves.wave_of(run.recipe.stage("image"), 0), url) == 4
    assert depth(url) == 4
    create_queue(url)
    assert depth(url) == 4, "one that is there is left as it is"
    assert cancel_run(run, template) == (4, [])
    assert depth(url) == 0


def test_a_queue_is_emptied_again_within_the_minute(tmp_path, template):
    run, _ = begin(Recipe.parse(RECIPE), str(tmp_path), template)
    url = queue_urls(template, run)["cpu"]
    wave = waves.wave_of(run.recipe.stage("image"), 0)
    for _ in range(2):
        waves.enqueue(run, wave, url)
        assert purge(url) == 4
        assert depth(url) == 0


def test_a_shared_queue_has_to_be_there_before_anything_is_written(tmp_path):
    with pytest.raises(RootError, match=r"sqs://nobody-made-this cannot be used"):
        begin(Recipe.parse(RECIPE), str(tmp_path), "sqs://nobody-made-this")
    assert Run.names(str(tmp_path)) == []
