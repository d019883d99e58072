"""An HTTP proxy that fails a share of the requests: ``python flaky.py --upstream URL``.

What it does wrong, each as often as the others:

500, 503    an answer that says so; half of the time after the request was carried out
reset       the connection closes without an answer
hang        no answer for longer than a client waits
torn        the connection closes in the middle of the body
short       the body is cut, and the header tells the length that is left
403, 400    denied, or of another region; only where they are asked for

Beside, a share of the messages sent to a queue is sent twice. ``/--counts`` answers with
what was done, ``/--rate/0.05`` sets the share.
"""

import argparse
import asyncio
import json
import random
from collections import Counter
from urllib.parse import urlsplit

KINDS = ("500", "503", "reset", "hang", "torn", "short")
CODES = {
    "500": "InternalError",
    "503": "SlowDown",
    "403": "AccessDenied",
    "400": "AuthorizationHeaderMalformed",
}
ANSWER = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>flaky</Message></Error>'


class Proxy:
    def __init__(self, upstream, *, rate, duplicates, kinds, hang_s, seed):
        split = urlsplit(upstream)
        self.host, self.port = split.hostname, split.port
        self.rate, self.duplicates, self.kinds, self.hang_s = (
            rate,
            duplicates,
            kinds,
            hang_s,
        )
        self.random = random.Random(seed)
        self.counts = Counter()

    async def serve(self, reader, writer):
        try:
            while (request := await read_message(reader, writer)) is not None:
                if not await self.answer(*request, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, head, body, writer):
        """Answer one request; whether the connection stays open."""
        first = head[0].split()[1].decode()
        if first.startswith("/--rate/"):
            self.rate = float(first.rpartition("/")[2])
        if first.startswith("/--"):
            await send(writer, b"HTTP/1.1 200 OK", json.dumps(self.counts).encode())
            return True
        self.counts["requests"] += 1
        if self.duplicates and b"SendMessageBatch" in b"".join(head):
            await self.send_again(head, body)
        if not self.chance(self.rate):
            writer.write(join(*await self.forward(head, body)))
            await writer.drain()
            return True
        kind = self.random.choice(self.kinds)
        if kind == "short" and not (head[0].startswith(b"GET") and not has_range(head)):
            kind = "torn"
        self.counts[kind] += 1
        if code := CODES.get(kind):
            if kind > "499" and self.chance(0.5):
                await self.forward(head, body)
            status = f"HTTP/1.1 {kind} {code}".encode()
            await send(writer, status, ANSWER.format(code=code).encode())
            return True
        if kind == "reset":
            return False
        answer, content = await self.forward(head, body)
        if kind == "hang":
            await asyncio.sleep(self.hang_s)
            return False
        cut = content[: len(content) // 2]
        if kind == "short":
            answer = [h for h in answer if not h.lower().startswith(b"content-length")]
            answer.append(b"Content-Length: %d\r\n" % len(cut))
        writer.write(join(answer, cut))
        await writer.drain()
        return kind == "short"

    async def send_again(self, head, body):
        """Send some of the messages of a batch on their own, before the batch."""
        batch = json.loads(body)
        self.counts["messages"] += len(batch["Entries"])
        again = [e for e in batch["Entries"] if self.chance(self.duplicates)]
        if again:
            self.counts["doubled messages"] += len(again)
            body = json.dumps({**batch, "Entries": again}).encode()
            kept = [h for h in head if not h.lower().startswith(b"content-length")]
            await self.forward([*kept, b"Content-Length: %d\r\n" % len(body)], body)

    def chance(self, share):
        return self.random.random() < share

    async def forward(self, head, body):
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=2**20)
        kept = [h for h in head if not h.lower().startswith(b"connection:")]
        writer.write(join([*kept, b"Connection: close\r\n"], body))
        await writer.drain()
        answer = await read_message(reader, bodiless=head[0].startswith(b"HEAD"))
        writer.close()
        answer[0][:] = [
            h
            for h in answer[0]
            if not h.lower().startswith((b"connection:", b"transfer-encoding:"))
        ]
        if not head[0].startswith(b"HEAD") and not any(
            h.lower().startswith(b"content-length:") for h in answer[0]
        ):
            answer[0].append(b"Content-Length: %d\r\n" % len(answer[1]))
        return answer


def has_range(head):
    return any(h.lower().startswith(b"range:") for h in head)


def join(head, body):
    return b"".join(head) + b"\r\n" + body


async def send(writer, status, body):
    length = b"Content-Length: %d\r\n" % len(body)
    writer.write(join([status + b"\r\n", length], body))
    await writer.drain()


async def read_message(reader, asker=None, *, bodiless=False):
    """Read head and body of a request or an answer; None at the end.

    Who asks whether to go on is told so at once.
    """
    head = []
    while (line := await reader.readline()) not in (b"\r\n", b""):
        head.append(line)
    if not head:
        return None
    fields = {
        h.split(b":")[0].strip().lower(): h.split(b":", 1)[1].strip() for h in head[1:]
    }
    status = head[0].split()[1]
    if bodiless or status in (b"204", b"304"):
        return head, b""
    if fields.get(b"expect", b"").lower() == b"100-continue":
        asker.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = [h for h in head if not h.lower().startswith(b"expect:")]
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return head, body
    if b"content-length" in fields:
        return head, await reader.readexactly(int(fields[b"content-length"]))
    return head, await reader.read() if head[0].startswith(b"HTTP") else b""


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--duplicates", type=float, default=0.0)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--hang-s", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    port = options.pop("port")
    proxy = Proxy(options.pop("upstream"), **options)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port, limit=2**20)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
