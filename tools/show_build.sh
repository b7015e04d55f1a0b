#!/bin/sh
# Runs a build whose output is long: shows how far the compiler is, keeps everything in a log, and shows that where it fails.
# Usage: show_build.sh LOG COMMAND...
log=$1
shift
mkdir -p "$(dirname "$log")"
if [ -t 1 ]; then end='\r'; else end='\n'; fi
{ "$@" 2>&1; echo "exit code $?"; } | tee "$log" | awk -v end="$end" '
  match($0, /\[[0-9]+\/[0-9]+\]/) {
    step = substr($0, RSTART, RLENGTH)
    split(substr(step, 2, length(step) - 2), count, "/")
    if (end == "\r" || count[1] % 10 == 0 || count[1] == count[2]) printf "   compiled %s of %s" end, count[1], count[2]
    fflush(); shown = 1
  }
  END { if (shown && end == "\r") print "" }'
[ "$(tail -n 1 "$log")" = "exit code 0" ] && exit 0
cat "$log" >&2
exit 1
