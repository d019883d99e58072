"""Messages and the queues that they lie on."""

import pytest

from pipeline.errors import RootError
from pipeline.geometry import ChunkKey
from pipeline.runtime.queue import TaskQueue
from pipeline.runtime.worker import serve


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


def test_a_worker_of_a_pool_needs_a_queue(monkeypatch, capsys):
    monkeypatch.delenv("EM_QUEUE", raising=False)
    monkeypatch.delenv("EM_QUEUE_GPU", raising=False)
    with pytest.raises(SystemExit) as ended:
        serve("gpu")
    assert ended.value.code == 2
    assert "set EM_QUEUE" in capsys.readouterr().err
