"""Run the trials of a study on a Ray cluster, one worker on each GPU that Ray gives.

Ray only starts the processes and chooses their GPUs; the study is on a PostgreSQL server, and goes
on whatever becomes of the cluster. A worker that Ray ends hands its trial back, one that is lost
with its node is started again elsewhere, and its trial goes on there after two minutes.

    python -m pip install "concertino[postgresql,ray]"
    export CONCERTINO_STORAGE=postgresql://ann@db.example/trials   # the password is in PGPASSWORD
    python -m search run --name birds --data /shared/birds --trials 200 &    # makes the study
    python examples/ray_workers.py birds --workers 8 -- --data /shared/birds

What follows `--` goes to `python -m search worker`. Where the folder of studies is shared,
`--studies /shared/studies` there lets the first host build the ensemble of all trials.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import ray


def run_worker(name: str, words: Sequence[str], variables: dict[str, str]) -> dict[str, Any]:
    """Run one worker in a process of its own, on the GPUs that Ray has given to this task.

    Args:
        name: Name of the study.
        words: More words for `python -m search worker`.
        variables: Of the environment; passwords are not seen in a list of processes there.

    Returns:
        What the worker says of itself, and its GPUs.

    Raises:
        RuntimeError: The worker failed; Ray tries again, perhaps on another node.
    """
    command = [sys.executable, "-m", "search", "worker", name, "--workers", "1", "--json", *words]
    with subprocess.Popen(  # noqa: S603  # our own program
        command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            told, _ = process.communicate()
        finally:
            process.terminate()  # where Ray ends this task: the trial is handed back
    if process.returncode != 0:
        raise RuntimeError(f"the worker ended with exit code {process.returncode}")
    return {**json.loads(told), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "")}


def main() -> None:
    """Start the workers, and tell what each of them did."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="name of the study")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus-each", type=float, default=1.0, help="0.5: two on each GPU")
    parser.add_argument("--cpus-each", type=float, default=1.0)
    parser.add_argument("--address", default="auto", help="of the cluster; local: begin one here")
    parser.add_argument("--local-gpus", type=int, help="GPUs that a local cluster counts with")
    # Cut here: argparse gives what follows `--` to no argument that may also be empty.
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, words = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    local = {"num_gpus": given.local_gpus} if given.address == "local" else {}
    ray.init(address=given.address, **local)
    task = ray.remote(num_gpus=given.gpus_each, num_cpus=given.cpus_each, max_retries=3)(
        run_worker
    )
    names = [name for name in os.environ if name.startswith(("CONCERTINO_", "PG"))]
    variables = {name: os.environ[name] for name in names}
    running = [task.remote(given.name, words, variables) for _ in range(given.workers)]
    while running:
        ended, running = ray.wait(running)
        print(json.dumps(ray.get(ended[0])), flush=True)


if __name__ == "__main__":
    main()
