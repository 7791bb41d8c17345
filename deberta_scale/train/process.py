"""One rank's process from its launch to its exit code, and what it says when it cannot go on."""

import traceback
from collections.abc import Callable
from typing import NoReturn

from deberta_scale.train import distributed, offload_directory
from deberta_scale.train.launch_environment import Launch, complain


def run_and_end(launch: Launch, action: Callable[[], int]) -> NoReturn:
    """End this process with the code that `action` returns on all ranks together: 1 when it raises, EXIT_LOST when that
    is because another rank has gone. An error that all have agreed on is told by the first, any other by its rank."""
    try:
        code = action()
        distributed.barrier()  # launchers end all ranks when one leaves with a code, and rank 0 has the last word
    except ValueError as error:
        code = 1
        if launch.is_main:
            complain(str(error))
        elif not isinstance(error, distributed.AgreedError):
            complain(f"rank {launch.rank}: {error}")
    except Exception as error:  # a rank alone: Python's shutdown would turn the code into that of an abort
        traceback.print_exc()
        offload_directory.release_all()
        distributed.end_process_at_once(distributed.EXIT_LOST if distributed.has_lost_a_rank(error) else 1)
    offload_directory.release_all()
    distributed.end_process(code)
