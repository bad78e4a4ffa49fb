"""A profiler trace of some steps of a run."""

import shutil
import socket
import tempfile
from pathlib import Path

import jax

from cpt_jax.runtime.errors import UserError
from cpt_jax.storage.paths import is_on_bucket
from cpt_jax.storage.upload import upload_folder


def serve_traces(port: int) -> None:
    """Serves traces of this process at a port, for as long as the process lives.

    Raises:
      UserError: the port is in use.
    """
    with socket.socket() as probe:
        # The server of the profiler only writes to the log if it cannot use the port.
        try:
            probe.bind(('', port))
        except OSError as error:
            raise UserError(f'--profile_port={port}: {error.strerror}') from error
    jax.profiler.start_server(port)


class StepProfiler:
    """Traces the steps from `first` to `last` on every process, each into a file of its own.

    xprof, or `jax.profiler.ProfileData.from_file` for one file, reads the trace.
    """

    def __init__(self, steps: tuple[int, ...], folder: Path):
        """Prepares a trace.

        Args:
          steps: first and last step to trace, counted from 1; () for no trace.
          folder: folder in which the profiler writes plugins/profile/TIME/HOST.xplane.pb.
        """
        self._first, self._last = steps or (0, 0)
        self._folder = folder
        self._local = folder
        self._is_tracing = False

    def start_before(self, step: int) -> None:
        """Starts the trace if this is the first step to trace."""
        if not step or step != self._first:
            return
        if is_on_bucket(self._folder):  # the profiler writes local files
            self._local = Path(tempfile.mkdtemp(prefix='cpt_jax_profile_'))
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python frames are most of the trace otherwise
        jax.profiler.start_trace(str(self._local), profiler_options=options)
        self._is_tracing = True

    def stop_after(self, step: int, result: object) -> None:
        """Stops the trace if this is the last step to trace, once its result is computed."""
        if self._is_tracing and step == self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes a trace in progress, also if fewer steps were run than asked for."""
        if not self._is_tracing:
            return
        self._is_tracing = False
        jax.profiler.stop_trace()
        if self._local != self._folder:
            upload_folder(self._local, str(self._folder), '--workdir')
            shutil.rmtree(self._local)
