#!/bin/bash
# Runs one part of the tests and notes how long it took. Usage: part.sh NAME COMMAND...; without arguments: prints the table.
# Wall time depends on what else the machine does; processor time is that of all processes of the part.
table=${POOLALLOC_PARTS:-build/parts.tsv}
if [ $# -eq 0 ]; then
  [ -f "$table" ] || exit 0
  awk -F'\t' 'BEGIN { printf "%-34s %10s %14s\n", "part", "minutes", "CPU minutes" }
    { printf "%-34s %10.1f %14.1f%s\n", $1, $2 / 60, $3 / 60, $4 == 0 ? "" : "  FAILED"; wall += $2; cpu += $3 }
    END { printf "%-34s %10.1f %14.1f\n", "all", wall / 60, cpu / 60 }' "$table"
  exit
fi
name=$1
shift
mkdir -p "$(dirname "$table")"
exec 3>&1 4>&2
TIMEFORMAT='%R %U %S'
figures=$({ time "$@" 1>&3 2>&4; } 2>&1)
status=$?
printf '%s\n' "$figures" | awk -v OFS='\t' -v name="$name" -v status=$status 'END { print name, $1, $2 + $3, status }' >>"$table"
exit $status
