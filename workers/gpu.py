"""Entry point of a GPU worker pod."""

from pipeline.runtime.worker import serve

if __name__ == "__main__":
    serve(pool="gpu")
