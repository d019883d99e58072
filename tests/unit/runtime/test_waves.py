"""The steps of a wave, each by itself: none of them waits."""

import pytest

from pipeline.errors import CancelledError, PermanentError, RootError, TaskError
from pipeline.geometry import ChunkKey
from pipeline.recipe import Recipe
from pipeline.runtime import frontier, waves
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import serial
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.run import Run
from pipeline.runtime.run_queues import (
    cancel_run,
    depth,
    purge,
    queue_url,
    queue_urls,
    run_token,
)

# task-queue leaves the listing of a folder open when it looks whether it is empty.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

RECIPE = {
    "name": "sections",
    "layers": {"raw": "phantom://64,64,8/image"},
    "grid": {
        "bounds": {"start": [0, 0, 0], "stop": [64, 64, 8]},
        "chunk": [32, 32, 8],
    },
    "stage": [
        {
            "use": "ingest",
            "source": "raw",
            "output": "image",
            "storage_chunk": [32, 32, 8],
            "voxel_size_nm": [6, 6, 30],
        },
        {"use": "image_quality", "image": "image", "output": "quality"},
    ],
}
BAD, GOOD = ChunkKey(0, 0, 0, 0), ChunkKey(0, 1, 0, 0)


@pytest.fixture
def run(tmp_path):
    return Run.start(Recipe.parse(RECIPE), str(tmp_path / "root"))


@pytest.fixture
def url(tmp_path):
    return f"fq://{tmp_path / 'queue'}"


@pytest.fixture
def image(run):
    return waves.wave_of(run.recipe.stage("image"), 0)


def test_what_is_done_or_given_up_is_not_enqueued(run, image, url):
    run.execute(image.stage, GOOD)
    run.park(image.stage, BAD, PermanentError("bad"))
    assert waves.enqueue(run, image, url) == 2
    assert depth(url) == 2
    assert [str(k) for k in waves.lacking(run, image)] == ["0_0_1_0", "0_1_1_0"]


def test_a_count_says_what_is_done_failed_and_missing(run, image):
    run.execute(image.stage, GOOD)
    run.park(image.stage, BAD, PermanentError("bad"))
    found = waves.count(run, image)
    assert (found.tasks, found.done, found.failed, found.missing) == (4, 1, 1, 2)
    assert not found.is_ended
    assert str(found) == "1 of 4 done, 1 failed, 2 missing"


def test_a_task_that_failed_and_then_was_done_counts_once(run, image):
    run.execute(image.stage, GOOD)
    run.park(image.stage, GOOD, PermanentError("bad"))
    assert waves.count(run, image).missing == 3


def test_waves_of_a_stage_are_counted_apart(run, image):
    quality = run.recipe.stage("quality")
    for key in image:
        run.execute(image.stage, key)
    for key in waves.wave_of(quality, 0):
        run.execute(quality, key)
    assert waves.count(run, waves.wave_of(quality, 0)).is_ended
    assert waves.count(run, waves.wave_of(quality, 1)).missing == 1
    assert waves.title(waves.wave_of(quality, 1)) == "quality 1"
    assert waves.title(image) == "image"


def test_a_stage_waits_for_what_it_reads(run, image):
    quality = run.recipe.stage("quality")
    assert waves.unfinished(run, image.stage) is None
    assert "image (0 of 4 done" in waves.unfinished(run, quality)
    for key in image:
        run.execute(image.stage, key)
    assert waves.unfinished(run, quality) is None


def test_workers_are_needed_while_a_stage_can_begin_or_go_on(run, image):
    assert waves.needs(run, "cpu")
    assert not waves.needs(run, "gpu")
    for key in image:
        run.execute(image.stage, key)
    assert waves.needs(run, "cpu"), "for the waves of quality"
    run_to_end(run, serial, quiet=True)
    assert not waves.needs(run, "cpu")


def test_failures_are_told_and_tried_again(run, image):
    run.park(image.stage, BAD, PermanentError("the disk is gone"))
    with pytest.raises(TaskError, match=r"1 of 4 tasks of image failed.*the disk is gone"):
        waves.raise_failed(run, image)
    assert waves.try_again(run, image) == 1
    assert waves.failures(run, image) == []
    waves.raise_failed(run, image)


def test_what_was_lost_is_found_and_made_again(run, image):
    for key in image:
        run.execute(image.stage, key)
    assert waves.prove(run, image) == []
    assert waves.forget_lost(run, image) == []
    done = run.done_record(image.stage, GOOD)
    (written,) = done.objects
    run.store.delete_document(f"image/{written}")
    (fault,) = waves.prove(run, image)
    assert (fault.key, fault.kind) == (GOOD, "lost")
    assert waves.forget_lost(run, image) == [GOOD]
    assert list(waves.lacking(run, image)) == [GOOD]
    (fault,) = waves.prove(run, image)
    assert fault.kind == "missing"


# -- watching --------------------------------------------------------------------------


def test_a_watch_sees_the_end(run, image, url):
    waves.enqueue(run, image, url)
    watch = waves.Watch(run, image, url)
    assert not watch.look()
    for key in image:
        run.execute(image.stage, key)
    purge(url)
    assert watch.look()
    assert watch.count.done == 4


def test_a_watch_lists_no_records_while_messages_wait(run, image, url, monkeypatch):
    waves.enqueue(run, image, url)
    watch = waves.Watch(run, image, url)
    listed = []
    counted = waves.count
    monkeypatch.setattr(waves, "count", lambda *a: listed.append(a) or counted(*a))
    monkeypatch.setattr(waves, "_LISTING_SHARE", 1e-9)
    for _ in range(20):
        assert not watch.look()
    assert len(listed) == 1


def test_lost_messages_are_sent_again(run, image, url):
    watch = waves.Watch(run, image, url)
    watch.queue.settles_s = 0.0
    assert not watch.look()
    assert not watch.look()
    assert watch.sent_again == 4
    assert depth(url) == 4
    assert "4 messages were lost and sent again" in watch.waits_for()


def test_a_wait_says_what_it_waits_for(run, image, url, monkeypatch):
    waves.enqueue(run, image, url)
    watch = waves.Watch(run, image, url)
    watch.look()
    assert watch.waits_for() == (
        f"image: 0 of 4 done, 0 failed, 4 missing; waits for workers on {url}"
    )
    monkeypatch.setattr(watch, "_changed", watch._changed - 600)
    assert f"is there a worker? em work --queue {url}" in watch.waits_for()


# -- queues ----------------------------------------------------------------------------


def test_runs_have_queues_of_their_own(run, tmp_path):
    other = Run.start(run.recipe, str(tmp_path / "other"))
    template = "sqs://em-{run}-{pool}"
    mine, theirs = (queue_urls(template, r)["cpu"] for r in (run, other))
    assert mine != theirs
    assert mine.startswith("sqs://em-sections-")
    assert mine.endswith("-cpu")
    assert queue_url("sqs://em-{pool}", run, "gpu") == "sqs://em-gpu"


def test_the_name_of_a_queue_is_one_that_sqs_takes():
    name = f"em-{run_token('gs://bucket/a/b', 'r' * 200)}-cpu"
    assert len(name) <= 80
    assert name.replace("-", "").isalnum()


@pytest.mark.parametrize("template", ["fq:///q/{root}", "fq:///q/{", "fq:///q/{0}"])
def test_other_braces_are_refused(run, template):
    with pytest.raises(RootError, match=r"\{run\} and \{pool\} may be used"):
        queue_url(template, run, "cpu")


# -- cancelling ------------------------------------------------------------------------


def test_a_cancelled_run_stops_and_keeps_what_is_done(run, image, tmp_path):
    template = f"fq://{tmp_path}/{{run}}-{{pool}}"
    url = queue_urls(template, run)["cpu"]
    run.execute(image.stage, GOOD)
    waves.enqueue(run, image, url)
    watch = waves.Watch(run, image, url)
    assert cancel_run(run, template) == (3, [])
    assert depth(url) == 0
    with pytest.raises(CancelledError, match="cancelled at"):
        watch.look()
    assert waves.count(run, image).done == 1
    waves.resume(run)
    assert not watch.look()


def test_a_shared_queue_is_left_as_it_is(run, image, url):
    waves.enqueue(run, image, url)
    assert cancel_run(run, url) == (0, [url])
    assert depth(url) == 4


def test_a_run_that_is_cancelled_meanwhile_stops_there(run, monkeypatch):
    image, quality = run.recipe.stages
    run.on_done = lambda record: waves.cancel(run)
    with pytest.raises(CancelledError):
        run_to_end(run, serial, quiet=True)
    assert len(run.done_keys(image)) == 4, "one looks now and then"
    assert run.done_keys(quality) == set()
    run.on_done = None
    run_to_end(run, serial, quiet=True)
    assert len(run.done_keys(quality)) == 5
    monkeypatch.setattr(frontier, "_LISTENS_S", 0.0)
    run.on_done = lambda record: waves.cancel(run)
    with pytest.raises(CancelledError):
        run_to_end(run, serial, within=image.bounds, quiet=True)
    assert len(run.done_keys(image)) == 1


def test_the_mark_is_no_run(run):
    waves.cancel(run)
    assert Run.names(run.store.root) == ["sections"]


def test_messages_name_the_run(run, image, url):
    waves.enqueue(run, image, url)
    message = TaskQueue(url).lease(10)
    assert [*message.args[1:3]] == ["sections", "image"]
