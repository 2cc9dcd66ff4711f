"""Where the jobs of a study run: on this machine, or on the workers of a Dask cluster; each on one thread."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from joblib import parallel_config
from threadpoolctl import threadpool_limits

from hemomil.errors import SettingsError

PATIENCE = 10
"""Seconds until a scheduler that does not answer is given up."""


@contextmanager
def on_one_thread() -> Iterator[None]:
    """A block in which torch and BLAS compute on one thread: the same sums in the same order, in any process.

    BLAS is limited in the whole process, torch in this thread of it.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)


def learning_processes() -> AbstractContextManager[None]:
    """A block whose processes import, as they begin, what training needs.

    One that described cells and grew by that only later is near what joblib takes for a leak (300 MB): it is
    stopped with a warning, and another begins.
    """
    here: AbstractContextManager[None] = parallel_config(backend="loky", initializer=_import_training)
    return here


def _import_training() -> None:
    import torch._dynamo  # noqa: F401  # as the first optimiser of a process does

    import hemomil.mil.model  # noqa: F401


def workers(address: str | None) -> AbstractContextManager[None]:
    """A block in which joblib's jobs run on the workers of the Dask scheduler at `address`; None: here.

    Connects at once. The workers need the same hemomil and the same files under the same paths. A job whose
    worker is lost is done again by another one.

    Raises SettingsError where Dask is not installed, or nothing answers at the address.
    """
    return nullcontext() if address is None else _on(_connected(address))


def _connected(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise SettingsError(
            "a cluster needs Dask, which is not installed", hint="pip install 'hemomil[cluster]'"
        ) from error
    try:
        return Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, TypeError, ValueError) as error:
        raise SettingsError(
            f"no Dask scheduler answers at {address!r}: {error}",
            hint="start one with `dask scheduler`, and give the address that it prints (tcp://host:8786)",
        ) from error


@contextmanager
def _on(client: Any) -> Iterator[None]:
    with client, parallel_config(backend="dask", client=client):
        yield
