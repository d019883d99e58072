"""Entry point of a CPU worker pod."""

from pipeline.runtime.worker import serve

if __name__ == "__main__":
    serve(pool="cpu")
