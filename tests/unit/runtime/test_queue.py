"""Messages and the queues that they lie on."""

import pytest

from pipeline.errors import RootError
from pipeline.geometry import ChunkKey
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.worker import serve

pytestmark = pytest.mark.filterwarnings(
    # task-queue leaves the iterator open with which it looks whether a queue is empty
    "ignore:.*ScandirIterator:pytest.PytestUnraisableExceptionWarning",
    "ignore:unclosed scandir iterator:ResourceWarning",
)


@pytest.mark.parametrize("url", ["", "queue", "http://queue", "/tmp/queue"])
def test_another_url_is_refused(url):
    with pytest.raises(RootError, match="fq://FOLDER or sqs://NAME") as raised:
        TaskQueue(url)
    assert repr(url) in str(raised.value)


def test_a_message_names_run_layer_and_key(tmp_path):
    queue = TaskQueue(f"fq://{tmp_path}")
    assert queue.is_empty()
    assert queue.lease(60) is None
    queue.insert("file:///root", "run", "image", [ChunkKey(0, 1, 2, 3)])
    assert not queue.is_empty()
    message = queue.lease(60)
    assert tuple(message.args) == ("file:///root", "run", "image", "0_1_2_3")
    assert queue.lease(60) is None, "it is leased"
    assert not queue.is_empty()
    queue.delete(message)
    assert queue.is_empty()


def test_a_worker_of_a_pool_needs_a_queue(monkeypatch):
    monkeypatch.delenv("EM_QUEUE", raising=False)
    monkeypatch.delenv("EM_QUEUE_GPU", raising=False)
    with pytest.raises(RootError, match="set EM_QUEUE"):
        serve("gpu")
