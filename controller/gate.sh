# The gate before an engine: no engine process starts without the word of its sidecar, at first boot and after every end.
#
# Run as `sh -c GATE gate ENGINE ARGUMENT...` with RUN_DIR set. It speaks through two FIFOs in $RUN_DIR, which
# the sidecar makes, keeps when it restarts, and holds open for as long as it lives:
#   gate-in, to the sidecar:   waiting PID          this process would become the engine, which keeps the pid
#                              exited PID STATUS    the engine that had this pid has ended
#   gate-out, to the gate:     start PID            exec the engine, if this is the waiting process's own pid
#                              anything else        announce again (a restarted sidecar says `again`)
# When a sidecar goes away, gate-out ends and a waiting gate announces again, which blocks until a sidecar listens.
#
# SIGTERM is passed on once the sidecar, which drains, has let go of gate-out: so nobody loses a request in flight.
#
# POSIX sh and its builtins only (sleep until there are FIFOs excepted). Never two dollar signs in a row, or one before a
# parenthesis: Kubernetes expands those in a container's command.

until [ -p "$RUN_DIR/gate-in" ] && [ -p "$RUN_DIR/gate-out" ]; do
  sleep 0.1
done
exec 4<"$RUN_DIR/gate-out"

engine='' watcher='' ended='' status=0

terminate() {
  [ -z "$watcher" ] || return 0
  { while read -r word <&4; do :; done; kill -TERM "$engine"; } 2>/dev/null &
  watcher=$!
}
trap terminate TERM

while [ -z "$watcher" ] && [ -p "$RUN_DIR/gate-in" ]; do
  {
    trap '' PIPE # a sidecar may go away while it is spoken to
    read -r pid word </proc/self/stat
    until [ "$word" = "start $pid" ]; do
      [ -p "$RUN_DIR/gate-in" ] || exit 1 # its volume is gone, and so is its pod
      [ -z "$ended" ] || { echo "$ended" >"$RUN_DIR/gate-in" && ended=''; } 2>/dev/null
      echo "waiting $pid" 2>/dev/null >"$RUN_DIR/gate-in"
      read -r word <&4
    done
    trap - PIPE
    exec "$@" 4<&-
  } &
  engine=$!
  [ -z "$watcher" ] || kill -TERM "$engine" # asked to end while this one was being made
  wait "$engine"
  status=$?
  # a signal ends the wait and not the engine
  while [ "$status" -gt 128 ] && kill -0 "$engine" 2>/dev/null; do
    wait "$engine"
    status=$?
  done
  ended="exited $engine $status"
done
kill "$watcher" 2>/dev/null
exit "$status"
