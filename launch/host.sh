#!/usr/bin/env bash
# One host of a TPU VM pod, where launch/tpu_vm.py runs this: installs the checkout this file is in, starts the command
# so that it outlives the connection, and follows it to its end. Where a command runs already, that one is followed.
#
#     launch/host.sh EXTRAS -- COMMAND ...
set -euo pipefail
extras=${1:?usage: launch/host.sh EXTRAS -- COMMAND ...}
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run=$HOME/mgie-run # the process id, the output and the exit code of the command
mkdir -p "$run"

# Not by its process id alone, which after a restart of the machine can be another's.
if ! grep -qs "$run/code" "/proc/$(cat "$run/pid" 2>/dev/null)/cmdline"; then
  cd "$here"
  if [ ! -e .venv/.installed ]; then
    # The images of TPU VMs have Python 3.10, which is too old; uv fetches a newer one.
    python3 -m pip install --quiet --user --upgrade uv
    python3 -m uv venv --quiet --clear --python 3.12 .venv
    python3 -m uv pip install --quiet --python .venv/bin/python --editable ".[$extras]"
    touch .venv/.installed
  fi
  rm -f "$run/code"
  [ ! -e "$run/log" ] || mv "$run/log" "$run/log.before"
  touch "$run/log" # for tail, which may be faster than what comes now
  # The shell in between has the signals go past it, so that it can write down how the command ended.
  # shellcheck disable=SC2016 # its own "$@"
  PATH="$here/.venv/bin:$PATH" setsid nohup bash -c 'trap : TERM INT; code=$1; shift; "$@"; echo $? >"$code"' \
    _ "$run/code" "$@" >>"$run/log" 2>&1 </dev/null &
  echo $! >"$run/pid"
fi
tail -n +1 -f -s 0.2 --pid="$(cat "$run/pid")" "$run/log"
code=$(cat "$run/code" 2>/dev/null || echo 137) # none: the shell itself was killed
echo "mgie-host: exit code $code"
exit "$code"
